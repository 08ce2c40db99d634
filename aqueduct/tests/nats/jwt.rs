//! Decentralised logins: an operator, an account and users, as `nsc` would make them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;

/// An operator with one account.
pub(crate) struct Operator {
    own: KeyPair,
    account: KeyPair,
    /// Servers want one for themselves.
    system: KeyPair,
}

impl Operator {
    pub(crate) fn new() -> Self {
        Self { own: KeyPair::new_operator(), account: KeyPair::new_account(), system: KeyPair::new_account() }
    }

    /// What a server needs to know of them.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let operator = self.own.public_key();
        let own = jwt(&self.own, &operator, "aqueduct", r#"{"type":"operator","version":2}"#, None);
        let limits = r#""mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1,"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1"#;
        let account = self.account.public_key();
        let system = self.system.public_key();
        let nats = format!(r#"{{"limits":{{{limits}}},"type":"account","version":2}}"#);
        let account_jwt = jwt(&self.own, &account, "shop", &nats, None);
        let nats = nats.replace(r#""mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1,"#, "");
        let system_jwt = jwt(&self.own, &system, "SYS", &nats, None);
        vec![
            ("operator", own),
            ("resolver", "MEMORY".to_owned()),
            ("system_account", system.clone()),
            ("resolver_preload", format!("{{ {account}: {account_jwt}, {system}: {system_jwt} }}")),
        ]
    }

    /// The file of a new user, valid for so long.
    pub(crate) fn credentials(&self, valid: Option<Duration>) -> String {
        let user = KeyPair::new_user();
        let nats = r#"{"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
        let jwt = jwt(&self.account, &user.public_key(), "shop", nats, valid);
        format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            user.seed().unwrap()
        )
    }
}

fn jwt(issuer: &KeyPair, subject: &str, name: &str, nats: &str, valid: Option<Duration>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let expires = valid.map(|valid| format!(r#""exp":{},"#, (now + valid).as_secs())).unwrap_or_default();
    let claims = format!(
        r#"{{{expires}"jti":"{subject}","iat":{},"iss":"{}","name":"{name}","sub":"{subject}","nats":{nats}}}"#,
        now.as_secs(),
        issuer.public_key()
    );
    let text = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", text(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#), text(&claims));
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap()))
}
