//! The least that somebody must be permitted, for the server's configuration or for `nsc`.

use aqueduct::nats::NatsOptions;
use aqueduct::topology::{Access, Permissions, Topology};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Output, print};

/// What permissions are printed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Blocks for users in the configuration of nats-server.
    #[default]
    Server,
    /// Lines of `nsc`.
    Nsc,
}

#[derive(Args)]
pub(super) struct Printing {
    /// Blocks for the configuration of nats-server, or lines of `nsc`.
    #[arg(long, value_enum, default_value_t)]
    form: Form,
    /// The domain of JetStream, where a leaf node connects several [default: the server's own].
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// What the subjects begin with on which answers come.
    #[arg(long, value_name = "PREFIX", default_value = "_INBOX")]
    inbox_prefix: String,
}

impl Printing {
    pub(super) fn run(self, topology: &Topology, consumers: Vec<String>, output: Output) -> Result<(), Failure> {
        let options = NatsOptions::new("nats://localhost").inbox_prefix(self.inbox_prefix);
        let options = match self.domain {
            Some(domain) => options.domain(domain),
            None => options,
        };
        let named =
            consumers.into_iter().map(|name| (format!("consumer {name}"), name.clone(), Access::Consume(name.into())));
        let all = [
            ("publisher".to_owned(), "publisher".to_owned(), Access::Publish),
            ("who verifies".to_owned(), "verifier".to_owned(), Access::Verify),
            ("who applies".to_owned(), "operator".to_owned(), Access::Apply),
        ];
        let mut shown = Vec::new();
        for (who, user, access) in named.chain(all) {
            shown.push((who, user, topology.permissions(&access, &options)?));
        }
        print(&match output {
            Output::Json => format!("{}\n", Value::Array(shown.iter().map(|(who, _, p)| object(who, p)).collect())),
            Output::Text => shown.iter().map(|(who, user, p)| self.form.text(who, user, p)).collect(),
        })
    }
}

impl Form {
    fn text(self, who: &str, user: &str, permissions: &Permissions) -> String {
        match self {
            Self::Server => format!("# {who}\n{permissions}\n"),
            Self::Nsc => format!("# {who}\n{}\n", permissions.nsc(user)),
        }
    }
}

fn object(who: &str, permissions: &Permissions) -> Value {
    json!({ "who": who, "publish": permissions.publish(), "subscribe": permissions.subscribe() })
}
