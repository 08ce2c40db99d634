//! What lies between a service and its database: connections can be cut, also between a commit and its answer, and led to another
//! server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::logs::BOUND;

/// A port of 127.0.0.1 that leads to a server.
pub(crate) struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where new connections go; what was connected before it changed is cut.
    target: watch::Sender<u16>,
    /// So many commits are yet to be cut off from their answers.
    to_cut: AtomicUsize,
    cut: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            target: watch::Sender::new(target),
            to_cut: AtomicUsize::new(0),
            cut: watch::Sender::new(0),
        });
        let all = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connected(client, Arc::clone(&all)));
            }
        });
        Self { port, shared }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Leads to another server from now on; all connections are cut.
    pub(crate) fn switch(&self, target: u16) {
        self.shared.target.send_replace(target);
    }

    /// Cuts the connections of the next commits after each was sent, and waits until it has.
    pub(crate) async fn cut_commits(&self, count: usize) {
        let already = *self.shared.cut.borrow();
        self.shared.to_cut.store(count, Ordering::SeqCst);
        let mut cut = self.shared.cut.subscribe();
        let all = cut.wait_for(|cut| *cut >= already + count);
        tokio::time::timeout(BOUND, all).await.expect("so many commits come").unwrap();
    }
}

/// Carries bytes both ways until either side ends or the connection is cut.
async fn connected(mut client: TcpStream, shared: Arc<Shared>) {
    let mut target = shared.target.subscribe();
    let port = *target.borrow_and_update();
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            biased;
            _ = target.changed() => return,
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                if server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
                let left = |left: usize| left.checked_sub(1);
                if is_commit(&asked[..count]) && shared.to_cut.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
                    let cut = *shared.cut.borrow();
                    // Every other one is cut when its answer is there, so that it has happened for certain.
                    if cut.is_multiple_of(2) {
                        let _ = server.read(&mut answered).await;
                    }
                    shared.cut.send_modify(|cut| *cut += 1);
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Both protocols send it as text: PostgreSQL with a zero at its end, MySQL perhaps behind another statement.
fn is_commit(message: &[u8]) -> bool {
    let text = message.strip_suffix(&[0]).unwrap_or(message);
    text.len() >= 6 && text[text.len() - 6..].eq_ignore_ascii_case(b"commit")
}
