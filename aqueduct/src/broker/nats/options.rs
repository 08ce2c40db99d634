//! How a NATS server is reached.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::layout::PARTITIONS;
use super::wire::from_percent;
use super::{NatsBroker, connect};
use crate::clock::Clock;
use crate::error::BrokerError;

/// How a NATS server is reached, and how events are published to it.
///
/// Addresses are `nats://host:port`, or `tls://` where nothing but TLS will do; several stand between commas. A user and a
/// password, or a token, may stand in an address, `nats://user:password@host`; then they are used for all of them.
///
/// The trap: an address with a password is a secret wherever you keep it; here it is taken apart at once, and neither `Debug`
/// nor an error nor a log line shows it.
///
/// ```no_run
/// # async fn connect() -> Result<(), aqueduct::BrokerError> {
/// use aqueduct::nats::NatsOptions;
/// let broker = NatsOptions::new("nats://n1.example:4222,nats://n2.example:4222")
///     .credentials_file("/run/secrets/shop.creds")
///     .name("shop")
///     .connect()
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is reached until `connect` is awaited"]
pub struct NatsOptions {
    /// Without what was before the `@`.
    pub(super) servers: Result<Vec<String>, String>,
    pub(super) login: Login,
    pub(super) name: Option<String>,
    pub(super) ping_interval: Duration,
    pub(super) reconnect_delay_max: Duration,
    pub(super) authorities: Vec<PathBuf>,
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    pub(super) tls: bool,
    pub(super) tls_first: bool,
    pub(super) inbox_prefix: Option<String>,
    pub(crate) api: Api,
    pub(crate) partitions: u32,
    pub(super) window: usize,
    pub(crate) ack_timeout: Duration,
    pub(crate) publish_timeout: Duration,
    pub(super) clock: Clock,
}

impl NatsOptions {
    /// The usual ones, for the servers at these addresses.
    pub fn new(urls: impl AsRef<str>) -> Self {
        let (servers, login) = match addresses(urls.as_ref()) {
            Ok((servers, login)) => (Ok(servers), login),
            Err(fault) => (Err(fault), Login::None),
        };
        Self {
            servers,
            login,
            name: None,
            ping_interval: Duration::from_secs(2),
            reconnect_delay_max: Duration::from_secs(4),
            authorities: Vec::new(),
            certificate: None,
            tls: false,
            tls_first: false,
            inbox_prefix: None,
            api: Api::Usual,
            partitions: PARTITIONS,
            window: 1_000,
            ack_timeout: Duration::from_secs(5),
            publish_timeout: Duration::from_secs(30),
            clock: Clock::system(),
        }
    }

    /// Logs in with a token. Defaults to what the address has.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.login = Login::Token(Secret(token.into()));
        self
    }

    /// Logs in as a user with a password. Defaults to what the address has.
    pub fn user(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.login = Login::User(user.into(), Secret(password.into()));
        self
    }

    /// Logs in with the seed of an NKEY, which begins with `SU`. Defaults to none.
    pub fn nkey(mut self, seed: impl Into<String>) -> Self {
        self.login = Login::Nkey(Secret(seed.into()));
        self
    }

    /// Logs in with the JWT and the seed in this file, which is read again for each connection: put a new one in its place, and
    /// the next connection uses it, also the one that follows when the server ends a session whose JWT has expired. Defaults
    /// to none.
    pub fn credentials_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.login = Login::Credentials(path.into());
        self
    }

    /// Trusts the certificates in this PEM file, and no others; may be given several times. Read again for each connection.
    /// Defaults to what the system trusts.
    pub fn certificate_authority(mut self, path: impl Into<PathBuf>) -> Self {
        self.authorities.push(path.into());
        self
    }

    /// Shows the server the certificate in this PEM file, with the key in the other (mutual TLS). Read again for each
    /// connection. Defaults to none.
    pub fn client_certificate(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.certificate = Some((certificate.into(), key.into()));
        self
    }

    /// Takes no connection without TLS; the same as `tls://` in an address. Defaults to TLS where the server asks for it.
    pub fn require_tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Begins with TLS before the server has said anything, for servers with `handshake_first`. Defaults to beginning when the
    /// server has.
    pub fn tls_first(mut self) -> Self {
        (self.tls, self.tls_first) = (true, true);
        self
    }

    /// What the server's monitoring calls this connection. Defaults to no name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How often the server is asked whether it is there; a connection that answers none of two is given up. Longer spares
    /// traffic on lines that are paid for. Defaults to 2 s.
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.ping_interval = interval;
        self
    }

    /// The longest pause between two attempts to connect, of which there are as many as it takes; the first follows at once,
    /// and pauses double. Defaults to 4 s.
    pub fn reconnect_delay_max(mut self, delay: Duration) -> Self {
        self.reconnect_delay_max = delay;
        self
    }

    /// What the subjects begin with on which answers come, for accounts that may not read `_INBOX.>`. Defaults to `_INBOX`.
    pub fn inbox_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.inbox_prefix = Some(prefix.into());
        self
    }

    /// The JetStream domain whose streams are used, where a leaf node connects several. Defaults to the server's own.
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.api = Api::Domain(domain.into());
        self
    }

    /// What the subjects of JetStream's API begin with, where an account imports it under another name. Defaults to `$JS.API`.
    pub fn api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.api = Api::Prefix(prefix.into());
        self
    }

    /// How many partitions topics have that are not [declared](NatsBroker::declare) with a number of their own: a power of two.
    /// It is part of their subjects: the server refuses publishers with another one. Defaults to 16.
    pub fn partitions(mut self, count: u32) -> Self {
        self.partitions = count;
        self
    }

    /// How many events may be on their way to the server without its confirmation; beyond it publishing waits. Defaults to 1,000.
    pub fn window(mut self, events: usize) -> Self {
        self.window = events.clamp(1, 1 << 20);
        self
    }

    /// How long a confirmation is waited for before the event is sent again under the same id. Defaults to 5 s.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.ack_timeout = timeout;
        self
    }

    /// How long publishing an event may take in all, with what is sent again, and with waiting for a server that is away.
    /// Keep it below the streams' dedup window: what is sent again later is stored twice. Defaults to 30 s.
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// What the subjects begin with on which answers come.
    pub(crate) fn inbox(&self) -> &str {
        self.inbox_prefix.as_deref().unwrap_or("_INBOX")
    }

    /// Connects. A server that is away is no error: it is tried for ever, [`NatsBroker::connection`] says why there is none, and
    /// publishing waits for it. Errors are addresses that cannot be read.
    ///
    /// Needs a tokio runtime.
    pub async fn connect(self) -> Result<NatsBroker, BrokerError> {
        connect::connect(self).await
    }
}

/// A text that is not shown.
#[derive(Clone)]
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// Who we say we are.
#[derive(Clone, Debug)]
pub(super) enum Login {
    None,
    Token(Secret),
    User(String, Secret),
    Nkey(Secret),
    Credentials(PathBuf),
}

/// Where JetStream's API is.
#[derive(Clone, Debug)]
pub(crate) enum Api {
    Usual,
    Domain(String),
    Prefix(String),
}

impl Api {
    /// What its subjects begin with.
    pub(crate) fn subjects(&self) -> String {
        match self {
            Self::Usual => "$JS.API".to_owned(),
            Self::Domain(domain) => format!("$JS.{domain}.API"),
            Self::Prefix(prefix) => prefix.clone(),
        }
    }
}

/// The addresses between commas, without their secrets, and the login in them. An error shows no secret either: what stands
/// before the last `@` is left out.
fn addresses(urls: &str) -> Result<(Vec<String>, Login), String> {
    let (mut servers, mut login) = (Vec::new(), Login::None);
    for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
        let (scheme, rest) = url.split_once("://").unwrap_or(("nats", url));
        let (secrets, place) = rest.rsplit_once('@').map_or((None, rest), |(secrets, place)| (Some(secrets), place));
        let place = place.trim_end_matches('/');
        if !matches!(scheme, "nats" | "tls") {
            // A password with `://` in it could pass for a scheme.
            return Err(format!("the address of {place:?} begins neither with nats:// nor with tls://"));
        }
        if place.is_empty() || place.contains(['/', '?', '#']) {
            return Err(format!("{place:?} is no host and port as in nats://host:4222"));
        }
        servers.push(format!("{scheme}://{place}"));
        if let Some(secrets) = secrets {
            login =
                login_in(secrets).ok_or_else(|| format!("the login before @{place} is not percent-encoded text"))?;
        }
    }
    if servers.is_empty() { Err("there is no address".to_owned()) } else { Ok((servers, login)) }
}

fn login_in(secrets: &str) -> Option<Login> {
    let text = |text: &str| String::from_utf8(from_percent(text)?).ok();
    Some(match secrets.split_once(':') {
        Some((user, password)) => Login::User(text(user)?, Secret(text(password)?)),
        None => Login::Token(Secret(text(secrets)?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_of_addresses_and_not_shown() {
        let options = NatsOptions::new("nats://shop:p%40ss@n1:4222, tls://n2/").nkey("SUAXYZ").user("shop", "p@ss");
        assert_eq!(options.servers.as_deref(), Ok(["nats://n1:4222", "tls://n2"].map(str::to_owned).as_slice()));
        let shown = format!("{options:?} {:?}", NatsOptions::new("x").nkey("SUAXYZ").login);
        assert!(!shown.contains("p@ss") && !shown.contains("SUAXYZ") && !shown.contains("p%40"), "{shown}");
        let Login::User(user, Secret(password)) = NatsOptions::new("shop:p%40ss@n1").login else { panic!() };
        assert_eq!((user.as_str(), password.as_str()), ("shop", "p@ss"));
        assert!(matches!(NatsOptions::new("nats://t0ken@n1").login, Login::Token(Secret(token)) if token == "t0ken"));
    }

    #[test]
    fn an_address_that_cannot_be_read_says_why_without_its_secrets() {
        for (url, why) in [
            ("", "no address"),
            ("http://a:topsecret@n1", "neither with"),
            ("a:topsecret@", "no host"),
            ("a:topsecret%zz@n1", "percent-encoded"),
            ("a:topsecret://x@n1", "neither with"),
            ("ws://n1", "neither with"),
        ] {
            let fault = NatsOptions::new(url).servers.unwrap_err();
            assert!(fault.contains(why) && !fault.contains("topsecret"), "{fault}");
        }
    }
}
