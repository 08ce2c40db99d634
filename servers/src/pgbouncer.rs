//! PgBouncer, the pooler that many PostgreSQL servers stand behind.

use anyhow::Result;
use rustix::process::Signal;

use crate::account::Account;
use crate::address::Address;
use crate::folder::RunFolder;
use crate::programs::{Kind, Places};
use crate::server::{Ends, Ready, Server, is_server};

/// A PgBouncer in transaction mode before a PostgreSQL server: each transaction may run on another connection, so that nothing
/// that belongs to a session holds. It ends when dropped.
#[derive(Debug)]
pub struct PgBouncer {
    server: Server,
    postgres: Address,
}

is_server!(PgBouncer);

impl PgBouncer {
    /// Starts it before the server with this address, and waits until it takes connections. Every database of the server is behind
    /// it, with ten connections to each.
    pub fn start(postgres_url: &str) -> Result<Self> {
        let postgres = Address::parse(postgres_url, 5432)?;
        let program = Places::here().program(Kind::PgBouncer, "pgbouncer")?;
        let account = Account::of("postgres")?;
        let run = RunFolder::new("pgbouncer", &account)?;
        let users = run.path().join("users.txt");
        std::fs::write(&users, format!("\"{}\" \"{}\"\n", postgres.user, postgres.password))?;
        let file = run.path().join("pgbouncer.ini");
        let (behind, users_file) = (postgres.clone(), users.display().to_string());
        let line = move |port: u16| {
            std::fs::write(&file, configuration(&behind, port, &users_file))?;
            let mut line = account.command(&program, Some("KILL"))?;
            line.arg(&file);
            Ok(line)
        };
        let ends = Ends { stop: Signal::INT, drop: Signal::KILL };
        let server = Server::start(Kind::PgBouncer.name(), run, Ready::Log("process up"), ends, Box::new(line))?;
        Ok(Self { server, postgres })
    }

    /// The address of a database behind it.
    pub fn url(&self, database: &str) -> String {
        Address { host: "127.0.0.1".into(), port: self.port(), ..self.postgres.database(database) }.url()
    }
}

/// `extra_float_digits` is what many clients, sqlx too, set on connecting; every guide tells to ignore it.
fn configuration(postgres: &Address, port: u16, users: &str) -> String {
    let Address { host, port: behind, user, password, .. } = postgres;
    // A word without a value is an error that it only warns of.
    let password = if password.is_empty() { String::new() } else { format!(" password={password}") };
    format!(
        "[databases]\n\
         * = host={host} port={behind} user={user}{password}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = {users}\n\
         pool_mode = transaction\n\
         default_pool_size = 10\n\
         max_client_conn = 500\n\
         ignore_startup_parameters = extra_float_digits\n"
    )
}
