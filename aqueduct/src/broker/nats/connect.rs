//! The connection: made again for ever, and what is known about it.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{Context, ContextBuilder};
use async_nats::rustls::crypto::{CryptoProvider, ring};
use async_nats::{Auth, AuthError, Client, ConnectOptions, Event, ServerAddr, ServerError};
use nkeys::KeyPair;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::options::{Login, NatsOptions, Secret};
use super::{NatsBroker, NatsConnection};
use crate::error::BrokerError;

/// How long `connect` waits for the first attempt to succeed or fail.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);

/// How many refusals are remembered, for those whom they are about to find them.
const DENIALS_MAX: usize = 256;

/// How often it is looked whether there is a connection, beside being told.
const LOOK: Duration = Duration::from_millis(500);

/// The client, and what it tells about its connection.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(super) context: Context,
    /// Where JetStream's API is: what its subjects begin with.
    pub(super) api: String,
    /// The servers, without secrets.
    pub(super) servers: String,
    state: watch::Receiver<State>,
}

#[derive(Debug, Default)]
struct State {
    connected: bool,
    /// How often a connection has been lost.
    losses: u64,
    /// Why there is none.
    why: Option<String>,
    /// What the server did not permit: number, and its words.
    denials: VecDeque<(u64, String)>,
    denied: u64,
    /// It does not permit answers to be read: asked for once in a connection, and so said once.
    deaf: Option<String>,
    /// What answers come on.
    inbox: String,
    /// Why nothing could be said about who we are; the client only says that it was so.
    no_login: Option<String>,
}

/// Where the connection stood when something was sent.
pub(crate) struct Mark {
    state: watch::Receiver<State>,
    losses: u64,
    denied: u64,
}

pub(super) async fn connect(options: NatsOptions) -> Result<NatsBroker, BrokerError> {
    let unreadable =
        |fault: &str| BrokerError::Refused(format!("the address of the NATS server cannot be used: {fault}"));
    let servers = options.servers.as_ref().map_err(|fault| unreadable(fault))?;
    let addresses = servers.iter().map(|server| server.parse::<ServerAddr>()).collect::<Result<Vec<_>, _>>();
    let addresses = addresses.map_err(|e| unreadable(&e.to_string()))?;
    // The client asks for the process's provider in a task of its own, and panics there where two are compiled in.
    if CryptoProvider::get_default().is_none() {
        let _ = ring::default_provider().install_default();
    }
    let inbox = options.inbox().to_owned();
    let (told, state) = watch::channel(State { inbox, ..State::default() });
    let client = client_options(&options, told).connect(addresses).await.map_err(|e| unreadable(&e.to_string()))?;
    let context = ContextBuilder::new()
        .timeout(options.ack_timeout)
        .ack_timeout(options.ack_timeout)
        // The window is ours; what was given up holds a place there for a while.
        .max_ack_inflight(options.window.saturating_mul(4));
    let api = options.api.subjects();
    let context = context.api_prefix(&api).build(client.clone());
    let link = Link { client, context, api, servers: servers.join(","), state };
    let mut first = link.state.clone();
    let attempted = first.wait_for(|state| state.connected || state.why.is_some());
    let _ = tokio::time::timeout(FIRST_ATTEMPT, attempted).await;
    Ok(NatsBroker::with(link, options))
}

fn client_options(options: &NatsOptions, told: watch::Sender<State>) -> ConnectOptions {
    let login = Arc::new(options.login.clone());
    let (delay_max, clock) = (options.reconnect_delay_max, options.clock.clone());
    let servers = options.servers.as_ref().map(|servers| servers.join(",")).unwrap_or_default();
    let told = Arc::new(told);
    let telling = told.clone();
    let authenticate = move |nonce| {
        let (login, told) = (login.clone(), telling.clone());
        async move {
            let auth = authenticate(&login, nonce).await;
            told.send_modify(|state| state.no_login = auth.as_ref().err().map(ToString::to_string));
            auth
        }
    };
    let mut client = ConnectOptions::with_auth_callback(authenticate)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempts| {
            let delay = delay_before(attempts, delay_max);
            delay / 2 + clock.jitter(delay / 2)
        })
        .ping_interval(options.ping_interval)
        .request_timeout(Some(options.ack_timeout))
        .require_tls(options.tls)
        .event_callback(move |event| {
            told.send_modify(|state| state.take(&event, &servers));
            std::future::ready(())
        });
    if options.tls_first {
        client = client.tls_first();
    }
    client = options.authorities.iter().fold(client, |client, path| client.add_root_certificates(path.clone()));
    if let Some((certificate, key)) = &options.certificate {
        client = client.add_client_certificate(certificate.clone(), key.clone());
    }
    if let Some(name) = &options.name {
        client = client.name(name);
    }
    match &options.inbox_prefix {
        Some(prefix) => client.custom_inbox_prefix(prefix),
        None => client,
    }
}

/// The first attempt follows at once; from the second on pauses double from 20 ms.
fn delay_before(attempts: usize, max: Duration) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(2)).unwrap_or(u32::MAX).min(20);
    if attempts <= 1 { Duration::ZERO } else { (Duration::from_millis(20) * 2_u32.pow(doublings)).min(max) }
}

/// What is said to the server; called for each connection.
async fn authenticate(login: &Login, nonce: Vec<u8>) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    match login {
        Login::None => {}
        Login::Token(Secret(token)) => auth.token = Some(token.clone()),
        Login::User(user, Secret(password)) => {
            (auth.username, auth.password) = (Some(user.clone()), Some(password.clone()));
        }
        Login::Nkey(Secret(seed)) => {
            let pair = key_pair(seed)?;
            (auth.nkey, auth.signature) = (Some(pair.public_key()), Some(sign(&pair, &nonce)?));
        }
        Login::Credentials(path) => {
            let (jwt, seed) = read_credentials(path).await?;
            (auth.jwt, auth.signature) = (Some(jwt), Some(sign(&key_pair(&seed.0)?, &nonce)?));
        }
    }
    Ok(auth)
}

fn key_pair(seed: &str) -> Result<KeyPair, AuthError> {
    KeyPair::from_seed(seed.trim()).map_err(|_| AuthError::new("the NKEY is no seed, which begins with SU"))
}

fn sign(pair: &KeyPair, nonce: &[u8]) -> Result<Vec<u8>, AuthError> {
    pair.sign(nonce).map_err(|_| AuthError::new("the NKEY cannot sign: it must be a seed, which begins with SU"))
}

async fn read_credentials(path: &Path) -> Result<(String, Secret), AuthError> {
    let owned = path.to_owned();
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(owned)).await;
    let failed = |why: &str| AuthError::new(format!("the credentials file {}: {why}", path.display()));
    let text = text.map_err(|e| failed(&e.to_string()))?.map_err(|e| failed(&e.to_string()))?;
    let jwt = block(&text, "NATS USER JWT").ok_or_else(|| failed("there is no JWT in it"))?;
    let seed = block(&text, "USER NKEY SEED").ok_or_else(|| failed("there is no seed in it"))?;
    Ok((jwt.to_owned(), Secret(seed.to_owned())))
}

/// What stands between the lines `BEGIN` and `END` of a name.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("BEGIN {name}"))?;
    rest.lines().skip(1).map(str::trim).find(|line| !line.is_empty()).filter(|line| !line.starts_with('-'))
}

impl State {
    fn take(&mut self, event: &Event, servers: &str) {
        match event {
            Event::Connected => {
                tracing::info!(servers, "connected to NATS");
                (self.connected, self.why, self.deaf) = (true, None, None);
            }
            Event::Disconnected => {
                tracing::warn!(servers, "the connection to NATS is lost; it is made again");
                self.connected = false;
                self.losses += 1;
                self.why.get_or_insert_with(|| "the connection is lost".to_owned());
            }
            Event::LameDuckMode => {
                tracing::info!(
                    servers,
                    "the NATS server is about to stop; the next connection is to another, if there is one"
                );
            }
            Event::ServerError(ServerError::Other(text)) if denied_subject(text).is_some() => self.deny(text),
            Event::ServerError(error) => self.fail(&error.to_string(), servers),
            Event::ClientError(error) => self.fail(&error.to_string(), servers),
            Event::Closed => (self.connected, self.why) = (false, Some("it was closed".to_owned())),
            event => tracing::debug!(servers, %event, "NATS"),
        }
    }

    fn deny(&mut self, text: &str) {
        tracing::warn!("the NATS server does not permit it: {text}");
        if denied_subject(text).is_some_and(|subject| subject.starts_with(&self.inbox)) {
            self.deaf = Some(text.to_owned());
        }
        self.denied += 1;
        self.denials.push_back((self.denied, text.to_owned()));
        if self.denials.len() > DENIALS_MAX {
            self.denials.pop_front();
        }
    }

    fn fail(&mut self, text: &str, servers: &str) {
        let no_login = self.no_login.take();
        let text = no_login.as_deref().unwrap_or(text);
        // While there is no connection each attempt fails, mostly for the same reason.
        if self.why.as_deref() != Some(text) {
            tracing::warn!(servers, "no connection to NATS: {text}");
        }
        self.why = Some(text.to_owned());
    }
}

/// The subject in `Permissions Violation for Publish to "subject"`.
fn denied_subject(text: &str) -> Option<&str> {
    text.to_ascii_lowercase().contains("permissions violation").then_some(())?;
    text.split('"').nth(1)
}

impl Link {
    /// Waits until there is a connection; fails with the reason why there is none.
    pub(super) async fn ready(&self, until: Instant) -> Result<(), BrokerError> {
        let mut state = self.state.clone();
        loop {
            if matches!(self.client.connection_state(), async_nats::connection::State::Connected) {
                return Ok(());
            }
            let look = until.min(Instant::now() + LOOK);
            match timeout_at(look, state.wait_for(|state| state.connected)).await {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < until => {}
                Err(_) => return Err(self.away()),
            }
        }
    }

    /// The error that there is no connection.
    pub(super) fn away(&self) -> BrokerError {
        let why = self.state.borrow().why.clone().unwrap_or_else(|| "no answer yet".to_owned());
        let text = format!("there is no connection to NATS at {}: {why}{}", self.servers, advice(&why));
        BrokerError::Unavailable(text.into())
    }

    pub(super) fn connection(&self) -> NatsConnection {
        let state = self.state.borrow();
        let connected = state.connected;
        NatsConnection { connected, why: state.why.clone().filter(|_| !connected) }
    }

    /// Waits for an answer to what was sent on a subject after the mark, or for a reason why none will come.
    pub(crate) async fn answer<T>(
        &self,
        mut mark: Mark,
        subject: &str,
        answer: impl Future<Output = T>,
    ) -> Result<T, BrokerError> {
        let mut answer = pin!(answer);
        loop {
            if let Some(text) = mark.denial(subject) {
                return Err(denied(subject, &text));
            }
            if mark.is_lost() {
                return Err(self.away());
            }
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer),
                changed = mark.state.changed() => if changed.is_err() { return Err(BrokerError::Closed) },
            }
        }
    }

    /// To be taken before something is sent.
    pub(crate) fn mark(&self) -> Mark {
        let state = self.state.clone();
        let (losses, denied) = {
            let seen = state.borrow();
            (seen.losses, seen.denied)
        };
        Mark { state, losses, denied }
    }
}

impl Mark {
    /// Resolves when the connection is lost.
    pub(super) async fn lost(&mut self) {
        let losses = self.losses;
        // Of a connection that is closed nothing more is heard.
        let _ = self.state.wait_for(|state| state.losses > losses).await;
    }

    /// The words with which the server did not permit what was sent on a subject; none if it was not sent in vain so far.
    fn denial(&mut self, subject: &str) -> Option<String> {
        let state = self.state.borrow_and_update();
        let ours = |(number, text): &&(u64, String)| *number > self.denied && denied_subject(text) == Some(subject);
        state.denials.iter().find(ours).map(|(_, text)| text).or(state.deaf.as_ref()).cloned()
    }

    fn is_lost(&self) -> bool {
        self.state.borrow().losses > self.losses
    }
}

/// The error that the server does not permit something.
fn denied(subject: &str, text: &str) -> BrokerError {
    let hint = if text.contains("for Subscription") {
        "allow this user to subscribe to the inbox, or set `inbox_prefix` to one that it may"
    } else {
        "allow this user to publish there"
    };
    BrokerError::Refused(format!("no permission for {subject} ({text}): {hint}"))
}

/// What to do about a connection that fails for this reason.
fn advice(why: &str) -> &'static str {
    let why = why.to_ascii_lowercase();
    if ["authorization", "authentication", "nkey", "credentials"].iter().any(|word| why.contains(word)) {
        "; check user, password, token, key or credentials file"
    } else if why.contains("tls") || why.contains("io error") {
        "; check that the server runs there, and, if it asks for TLS, the certificates"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_their_blocks() {
        let text = "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n\
                    -----BEGIN USER NKEY SEED-----\nSUAB\n------END USER NKEY SEED------\n";
        assert_eq!((block(text, "NATS USER JWT"), block(text, "USER NKEY SEED")), (Some("eyJ0.x.y"), Some("SUAB")));
        assert_eq!(block("-----BEGIN USER NKEY SEED-----\n------END", "USER NKEY SEED"), None);
    }

    #[test]
    fn pauses_double_up_to_their_cap() {
        let max = Duration::from_secs(4);
        let delays = [1, 2, 3, 9, 10, 1_000].map(|attempts| delay_before(attempts, max).as_millis());
        assert_eq!(delays, [0, 20, 40, 2_560, 4_000, 4_000]);
    }

    #[test]
    fn a_refusal_names_its_subject() {
        let text = r#"Permissions Violation for Publish to "a.16.1.b""#;
        assert_eq!(denied_subject(text), Some("a.16.1.b"));
        assert_eq!(denied_subject("User Authentication Expired"), None);
    }
}
