//! Who may do what, and what those are told who may not.

use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct::{BrokerError, Topic};
use aqueduct_servers::{Nats, Options};
use nkeys::KeyPair;

use crate::fresh::{impatient, message, publish, server};
use crate::jwt::Operator;

/// A topic can be made and published to.
async fn works(options: NatsOptions) {
    let broker = options.connect().await.unwrap();
    broker.declare("orders").await.unwrap();
    publish(&broker, message(&"orders".into(), "a", "x")).await.unwrap();
    assert!(broker.connection().connected);
}

/// There is no connection, and the error says what to check.
async fn fails(options: NatsOptions, parts: &[&str]) {
    let broker = options.connect().await.unwrap();
    let error = publish(&broker, message(&"orders".into(), "a", "x")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BrokerError::Unavailable(_)), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    assert!(!text.contains("wrong"), "a secret is shown: {text}");
    let connection = broker.connection();
    assert!(!connection.connected && connection.why.is_some(), "{connection:?}");
    assert!(broker.declare("orders").await.unwrap_err().is_transient());
}

const CHECK: &[&str] = &["no connection", "authorization violation", "check user, password"];

#[tokio::test]
async fn a_user_logs_in_with_the_password() {
    let server = server("authorization", "{ user: shop, password: \"p@ss\" }");
    works(impatient(&server).user("shop", "p@ss")).await;
    works(NatsOptions::new(format!("nats://shop:p%40ss@127.0.0.1:{}", server.port()))).await;
    fails(impatient(&server).user("shop", "wrong"), CHECK).await;
    fails(impatient(&server), CHECK).await;
}

#[tokio::test]
async fn a_token_is_enough() {
    let server = server("authorization", "{ token: t0ken }");
    works(impatient(&server).token("t0ken")).await;
    works(NatsOptions::new(format!("nats://t0ken@127.0.0.1:{}", server.port()))).await;
    fails(impatient(&server).token("wrong"), CHECK).await;
}

#[tokio::test]
async fn an_nkey_signs() {
    let pair = KeyPair::new_user();
    let server = server("authorization", &format!("{{ users: [{{ nkey: {} }}] }}", pair.public_key()));
    works(impatient(&server).nkey(pair.seed().unwrap())).await;
    fails(impatient(&server).nkey(KeyPair::new_user().seed().unwrap()), CHECK).await;
    fails(impatient(&server).nkey("wrong"), &["no connection", "check user"]).await;
}

#[tokio::test]
async fn credentials_that_expire_are_read_again() {
    let operator = Operator::new();
    // Only then its log says why a session has ended.
    let options = Options::new().settings(&operator.settings()).setting("debug", "true");
    let server = Nats::start(options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.creds");
    let missing = impatient(&server).credentials_file(&file);
    fails(missing, &["shop.creds: No such file", "check user"]).await;
    std::fs::write(&file, operator.credentials(Some(Duration::from_secs(2)))).unwrap();
    let broker = NatsOptions::new(server.url()).credentials_file(&file).connect().await.unwrap();
    broker.declare("orders").await.unwrap();
    publish(&broker, message(&"orders".into(), "a", "1")).await.unwrap();
    std::fs::write(&file, operator.credentials(None)).unwrap();
    // The session ends with its JWT. Until then publishing goes on; afterwards it does too, with what the file has now.
    let expired = async {
        while !server.log_tail(10_000).contains("Authentication Expired") {
            publish(&broker, message(&"orders".into(), "a", "2")).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_mins(1), expired).await.expect("the session ends");
    for _ in 0..10 {
        publish(&broker, message(&"orders".into(), "a", "3")).await.unwrap();
    }
}

/// A server with a user who may do anything, and `shop` with these permissions.
fn with_permissions(permissions: &str) -> Nats {
    let users = format!(
        "{{ users: [{{ user: root, password: root }}, {{ user: shop, password: shop, permissions: {permissions} }}] }}"
    );
    server("authorization", &users)
}

/// Patient enough that only the server's word can end it.
async fn shop(server: &Nats) -> NatsBroker {
    let minutes = Duration::from_mins(5);
    NatsOptions::new(server.url())
        .user("shop", "shop")
        .ack_timeout(minutes)
        .publish_timeout(minutes)
        .connect()
        .await
        .unwrap()
}

async fn root(server: &Nats) -> NatsBroker {
    let broker = NatsOptions::new(server.url()).user("root", "root").connect().await.unwrap();
    broker.declare(NatsTopic::new("orders")).await.unwrap();
    broker
}

#[tokio::test]
async fn who_may_not_publish_is_told_at_once_and_others_are_not_disturbed() {
    let server = with_permissions("{ publish: { deny: \"orders.16.*.secret\" } }");
    let (_root, shop) = (root(&server).await, shop(&server).await);
    let mut secret = message(&"orders".into(), "a", "x");
    secret.headers.add("ce-type", "secret");
    let allowed = message(&"orders".into(), "a", "x");
    let answers = shop.publish(vec![allowed.clone(), secret, allowed]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    let error = answers[1].as_ref().unwrap_err();
    let text = error.to_string();
    assert!(text.contains("no permission for orders.16.") && text.contains("allow this user to publish"), "{text}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn who_may_only_publish_publishes() {
    let server = with_permissions("{ publish: \"orders.>\", subscribe: \"_INBOX.>\" }");
    let (_root, shop) = (root(&server).await, shop(&server).await);
    let mut sent = message(&"orders".into(), "a", "x");
    sent.dedup_id = Some("shop#1".into());
    assert!(!publish(&shop, sent.clone()).await.unwrap().duplicate);
    // The bodies cannot be compared.
    assert!(publish(&shop, sent).await.unwrap().duplicate);
    let text = shop.check_topic(&"orders".into()).await.unwrap_err().to_string();
    assert!(text.contains("no permission for $JS.API.STREAM.INFO.orders"), "{text}");
}

#[tokio::test]
async fn who_may_not_read_answers_is_told_so() {
    let server = with_permissions("{ publish: \">\", subscribe: \"shop.inbox.>\" }");
    let _root = root(&server).await;
    let deaf = shop(&server).await;
    let topic = Topic::from("orders");
    for _ in 0..2 {
        let text = publish(&deaf, message(&topic, "a", "x")).await.unwrap_err().to_string();
        assert!(text.contains("_INBOX") && text.contains("inbox_prefix"), "{text}");
    }
    works(NatsOptions::new(server.url()).user("shop", "shop").inbox_prefix("shop.inbox")).await;
}
