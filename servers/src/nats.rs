//! NATS with JetStream.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::account::Account;
use crate::folder::RunFolder;
use crate::options::Options;
use crate::postgres::data_folder;
use crate::programs::{Kind, Places};
use crate::server::{Ends, Ready, Server, free_port, is_server};

type Settings = Arc<Mutex<Vec<(String, String)>>>;

/// A NATS server of a test's own, with JetStream. It ends when dropped.
#[derive(Debug)]
pub struct Nats {
    server: Server,
    data: PathBuf,
    settings: Settings,
}

is_server!(Nats);

impl Nats {
    /// Starts a server and waits until it takes connections. Fails, with the end of its log, if it does not; and if NATS is not
    /// installed.
    pub fn start(options: Options) -> Result<Self> {
        Self::start_with(options, "")
    }

    #[allow(clippy::needless_pass_by_value, reason = "as for the databases")]
    fn start_with(options: Options, more: &str) -> Result<Self> {
        let program = Places::here().program(Kind::Nats, "nats-server")?;
        let account = Account::own();
        let run = RunFolder::new("nats", &account)?;
        let data = data_folder(&options, &run, &account)?;
        let settings: Settings = Arc::new(Mutex::new(options.all_settings().to_vec()));
        let (file, folder, more) = (run.path().join("nats.conf"), data.clone(), more.to_owned());
        let current = settings.clone();
        let line = move |port: u16| {
            let settings = current.lock().unwrap_or_else(PoisonError::into_inner);
            std::fs::write(&file, configuration(&folder, &settings) + &more)?;
            let mut line = account.command(&program, Some("KILL"))?;
            line.arg("--config").arg(&file).args(["--addr", "127.0.0.1", "--port", &port.to_string()]);
            Ok(line)
        };
        let ends = Ends { stop: Signal::TERM, drop: Signal::KILL };
        let server = Server::start(Kind::Nats.name(), run, Ready::Log("Server is ready"), ends, Box::new(line))?;
        Ok(Self { server, data, settings })
    }

    /// Its address, without a user.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port())
    }

    /// Changes a setting, from the next start on.
    pub fn set(&self, name: &str, value: &str) {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        settings.retain(|(known, _)| known != name);
        settings.push((name.to_owned(), value.to_owned()));
    }

    /// Where its streams are.
    pub fn data(&self) -> &Path {
        &self.data
    }
}

/// Three servers that keep copies for each other. They end when dropped.
#[derive(Debug)]
pub struct NatsCluster {
    servers: Vec<Nats>,
}

impl NatsCluster {
    /// Starts them, with the same options, and waits until a stream with three copies can be made. The options may neither ask for a
    /// login nor name a folder.
    pub fn start(options: &Options) -> Result<Self> {
        let mut ports: Vec<u16> = Vec::new();
        while ports.len() < 3 {
            let port = free_port()?;
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        let routes: Vec<_> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let one = |(number, port): (usize, &u16)| {
            let more = format!(
                "server_name: n{number}\ncluster {{ name: aqueduct, listen: \"127.0.0.1:{port}\", routes: {routes:?} }}\n"
            );
            Nats::start_with(options.elsewhere(), &more)
        };
        let servers = ports.iter().enumerate().map(one).collect::<Result<Vec<_>>>()?;
        let cluster = Self { servers };
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// The servers.
    pub fn servers(&self) -> &[Nats] {
        &self.servers
    }

    /// The addresses of all, as one text.
    pub fn url(&self) -> String {
        self.servers.iter().map(Nats::url).collect::<Vec<_>>().join(",")
    }

    fn wait_ready(&self) -> Result<()> {
        const PROBE: &str = "aqueduct_is_the_cluster_ready";
        let body = format!(r#"{{"name":"{PROBE}","subjects":["{PROBE}"],"num_replicas":3,"storage":"memory"}}"#);
        let deadline = Instant::now() + Duration::from_mins(1);
        let first = self.servers.first().context("no server")?;
        loop {
            let answer = request(first.port(), &format!("$JS.API.STREAM.CREATE.{PROBE}"), &body);
            match answer {
                Ok(answer) if answer.contains(r#""config""#) => break,
                answer if Instant::now() > deadline => {
                    bail!("the cluster keeps no copies after a minute: {answer:?}; {}", first.log_tail(20))
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
        request(first.port(), &format!("$JS.API.STREAM.DELETE.{PROBE}"), "").map(drop)
    }
}

/// One question in NATS's own protocol: there is no client in this crate. The answer is what comes after its header line.
fn request(port: u16, subject: &str, body: &str) -> Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let (inbox, length) = (format!("_INBOX.aqueduct.{}.{port}", std::process::id()), body.len());
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    (&stream).write_all(
        format!("CONNECT {{\"verbose\":false,\"lang\":\"rust\",\"version\":\"0\",\"protocol\":1}}\r\nSUB {inbox} 1\r\nPUB {subject} {inbox} {length}\r\n{body}\r\n")
            .as_bytes(),
    )?;
    loop {
        let line = lines.next().context("the server has closed the connection")??;
        if line.starts_with("MSG ") {
            return lines.next().context("the answer is missing")?.map_err(Into::into);
        }
        anyhow::ensure!(!line.starts_with("-ERR"), "{line}");
    }
}

/// The text of the configuration file. What confirms is durable, as on real servers, but for the kernel's cache: a killed server loses
/// nothing, a lost machine up to two minutes, which no test here can show.
fn configuration(data: &Path, settings: &[(String, String)]) -> String {
    let mut text = format!("jetstream {{\n  store_dir: \"{}\"\n", data.display());
    for (name, value) in settings.iter().filter_map(|(name, value)| Some((name.strip_prefix("jetstream.")?, value))) {
        let _ = writeln!(text, "  {name}: {value}");
    }
    text.push_str("}\n");
    for (name, value) in settings.iter().filter(|(name, _)| !name.starts_with("jetstream.")) {
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_jetstream_stand_in_its_block() {
        let settings = [("max_payload", "64KB"), ("jetstream.max_file_store", "1MB")];
        let text = configuration(Path::new("/x"), &settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(text, "jetstream {\n  store_dir: \"/x\"\n  max_file_store: 1MB\n}\nmax_payload: 64KB\n");
    }
}
