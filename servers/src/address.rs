//! The address of a database server, as in `postgres://user:password@host:port/database`.

use anyhow::{Context, Result};

/// The parts of an address. Nothing in it is percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) scheme: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) database: String,
}

impl Address {
    /// Reads an address; a port may be missing, everything else is there.
    pub(crate) fn parse(url: &str, usual_port: u16) -> Result<Self> {
        Self::parts(url, usual_port)
            .with_context(|| format!("{url:?} is no address like postgres://user:password@host:port/database"))
    }

    fn parts(url: &str, usual_port: u16) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (login, rest) = rest.rsplit_once('@')?;
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (place, database) = rest.split_once('/')?;
        let database = database.split('?').next().unwrap_or(database);
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (place, usual_port),
        };
        let own = str::to_owned;
        Some(Self {
            scheme: own(scheme),
            user: own(user),
            password: own(password),
            host: own(host),
            port,
            database: own(database),
        })
    }

    /// The same server, another database.
    pub(crate) fn database(&self, database: &str) -> Self {
        Self { database: database.to_owned(), ..self.clone() }
    }

    pub(crate) fn url(&self) -> String {
        let Self { scheme, user, password, host, port, database } = self;
        format!("{scheme}://{user}:{password}@{host}:{port}/{database}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_written() {
        let url = "postgres://a:b@127.0.0.1:20001/c";
        let address = Address::parse(url, 5432).unwrap();
        assert_eq!((address.user.as_str(), address.port, address.database.as_str()), ("a", 20001, "c"));
        assert_eq!(address.url(), url);
        assert_eq!(address.database("d").url(), "postgres://a:b@127.0.0.1:20001/d");
        assert_eq!(Address::parse("mysql://a:b@db/c?x=1", 3306).unwrap().url(), "mysql://a:b@db:3306/c");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for url in ["", "localhost", "postgres://localhost/a", "postgres://a@b:c/d", "postgres://a:b@c"] {
            let error = Address::parse(url, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{url:?}")), "{error}");
        }
    }
}
