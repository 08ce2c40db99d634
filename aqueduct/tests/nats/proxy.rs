//! What lies between instances and their server: it can fall silent without an end of any connection.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A port of 127.0.0.1 that leads to a server.
pub(crate) struct Proxy {
    port: u16,
    dark: Arc<watch::Sender<bool>>,
}

impl Proxy {
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dark = Arc::new(watch::Sender::new(false));
        let told = Arc::clone(&dark);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connected(client, target, told.subscribe()));
            }
        });
        Self { port, dark }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Whether nothing gets through, in either direction; connections stay, and new ones are accepted.
    pub(crate) fn be_dark(&self, dark: bool) {
        self.dark.send_replace(dark);
    }
}

/// Carries bytes both ways until either side ends.
async fn connected(client: TcpStream, target: u16, dark: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        biased;
        () = carry(from_client, to_server, dark.clone()) => {}
        () = carry(from_server, to_client, dark) => {}
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut dark: watch::Receiver<bool>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if dark.wait_for(|dark| !dark).await.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}
