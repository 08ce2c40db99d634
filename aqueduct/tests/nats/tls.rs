//! TLS, from one side and from both.

use std::path::{Path, PathBuf};

use aqueduct::BrokerError;
use aqueduct::nats::NatsOptions;
use aqueduct_servers::Nats;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

use crate::fresh::{impatient, message, publish, server};

/// Certificates in a folder, all signed by one authority.
struct Certificates {
    folder: tempfile::TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        let all = Self { folder, authority };
        all.write("server", ExtendedKeyUsagePurpose::ServerAuth);
        all.write("client", ExtendedKeyUsagePurpose::ClientAuth);
        all
    }

    fn write(&self, name: &str, usage: ExtendedKeyUsagePurpose) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(name), certificate.pem()).unwrap();
        std::fs::write(self.key(name), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.pem"))
    }

    fn key(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}-key.pem"))
    }

    fn server(&self, more: &str) -> Nats {
        let text = |path: &Path| format!("\"{}\"", path.display());
        let [cert, key, ca] = [self.path("server"), self.key("server"), self.path("ca")].map(|path| text(&path));
        server("tls", &format!("{{ cert_file: {cert}, key_file: {key}, ca_file: {ca}, {more} }}"))
    }
}

async fn works(options: NatsOptions) {
    let broker = options.connect().await.unwrap();
    broker.declare("orders").await.unwrap();
    publish(&broker, message(&"orders".into(), "a", "x")).await.unwrap();
}

async fn fails(options: NatsOptions) -> String {
    let broker = options.connect().await.unwrap();
    let error = publish(&broker, message(&"orders".into(), "a", "x")).await.unwrap_err();
    assert!(matches!(error, BrokerError::Unavailable(_)), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_server_with_tls_is_trusted_for_its_authority() {
    let certificates = Certificates::new();
    let server = certificates.server("");
    works(impatient(&server).certificate_authority(certificates.path("ca"))).await;
    let url = server.url().replace("nats://", "tls://");
    works(NatsOptions::new(url).certificate_authority(certificates.path("ca")).require_tls()).await;
    let text = fails(impatient(&server).certificate_authority(Certificates::new().path("ca"))).await;
    assert!(text.contains("the certificates"), "{text}");
}

#[tokio::test]
async fn a_server_without_tls_is_refused_by_who_requires_it() {
    let server = server("max_payload", "1MB");
    fails(impatient(&server).require_tls()).await;
}

#[tokio::test]
async fn a_server_that_begins_with_tls_is_met_so() {
    let certificates = Certificates::new();
    let server = certificates.server("handshake_first: true");
    works(impatient(&server).certificate_authority(certificates.path("ca")).tls_first()).await;
}

#[tokio::test]
async fn both_sides_show_certificates() {
    let certificates = Certificates::new();
    let server = certificates.server("verify: true");
    let options = || impatient(&server).certificate_authority(certificates.path("ca"));
    works(options().client_certificate(certificates.path("client"), certificates.key("client"))).await;
    fails(options()).await;
    let others = Certificates::new();
    fails(options().client_certificate(others.path("client"), others.key("client"))).await;
}
