//! Which mail server, and how it is to be reached: `SMTP_URL` and `SMTP_CA_FILE` as types.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::extension::ClientId;
use percent_encoding::percent_decode_str;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use url::{Host, Url};

/// A mail server.
#[derive(Clone)]
pub(crate) struct Server {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) security: Security,
    pub(super) credentials: Option<Credentials>,
    pub(super) hello: ClientId,
    /// What a step may take; the answer to the message may take ten times that (RFC 5321, 4.5.3.2).
    pub(super) timeout: Duration,
}

/// How the connection is encrypted.
#[derive(Clone)]
pub(super) enum Security {
    /// Not at all.
    Plain,
    /// By STARTTLS when the server offers it.
    Opportunistic(TlsConnector, ServerName<'static>),
    /// By STARTTLS, or no mail is sent.
    Required(TlsConnector, ServerName<'static>),
    /// From the first byte.
    Implicit(TlsConnector, ServerName<'static>),
}

/// Why a server cannot be used as it is set.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidServer {
    /// Not a URL of a mail server.
    #[error("not a URL of a mail server")]
    Url,
    /// A password that anybody could read.
    #[error("a password over an unencrypted connection")]
    PlainPassword,
    /// The file with the CA's certificates.
    #[error("{0}")]
    CaFile(String),
}

impl Server {
    /// Reads `smtp://host:port`, `smtps://user:password@host:465`, `smtp://…?tls=required` or
    /// `?tls=opportunistic`; a path is the name for EHLO. `ca_file` (PEM) replaces the public CAs.
    ///
    /// # Errors
    /// [`InvalidServer`]
    pub(crate) fn parse(url: &str, ca_file: Option<&Path>, timeout: Duration) -> Result<Self, InvalidServer> {
        let url = Url::parse(url).map_err(|_| InvalidServer::Url)?;
        let host = url.host_str().ok_or(InvalidServer::Url)?.trim_matches(['[', ']']).to_owned();
        let tls = match url.query() {
            None => None,
            Some(query) => Some(query.strip_prefix("tls=").ok_or(InvalidServer::Url)?),
        };
        // Read even when no TLS is asked for: a wrong setting shows at once.
        let trust = Trust::read(ca_file)?;
        let name = || ServerName::try_from(host.clone()).map_err(|_| InvalidServer::Url);
        let (security, port) = match (url.scheme(), tls) {
            ("smtp", None) => (Security::Plain, 25),
            ("smtp", Some("opportunistic")) => (Security::Opportunistic(trust.connector()?, name()?), 587),
            ("smtp", Some("required")) => (Security::Required(trust.connector()?, name()?), 587),
            ("smtps", None) => (Security::Implicit(trust.connector()?, name()?), 465),
            _ => return Err(InvalidServer::Url),
        };
        let encrypted = matches!(security, Security::Required(..) | Security::Implicit(..));
        let credentials = match url.password() {
            None if url.username().is_empty() => None,
            None => return Err(InvalidServer::Url),
            Some(_) if !encrypted && !is_loopback(&url) => return Err(InvalidServer::PlainPassword),
            Some(password) => Some(Credentials::new(decode(url.username())?, decode(password)?)),
        };
        let hello = match url.path().trim_matches('/') {
            "" => ClientId::default(),
            name => ClientId::Domain(name.to_owned()),
        };
        Ok(Self { host, port: url.port().unwrap_or(port), security, credentials, hello, timeout })
    }
}

fn decode(text: &str) -> Result<String, InvalidServer> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| InvalidServer::Url)
}

fn is_loopback(url: &Url) -> bool {
    // The scheme is none that `Url` knows hosts of: an IP address comes as a name.
    let ip = match url.host() {
        Some(Host::Domain(name)) => match name.parse() {
            Ok(ip) => ip,
            Err(_) => return name == "localhost",
        },
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip),
        None => return false,
    };
    ip.is_loopback()
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

/// Whose certificates are believed: those of a file, or of the public CAs.
struct Trust(Option<Vec<CertificateDer<'static>>>);

impl Trust {
    fn read(ca_file: Option<&Path>) -> Result<Self, InvalidServer> {
        let Some(path) = ca_file else { return Ok(Self(None)) };
        let wrong = |why: String| InvalidServer::CaFile(format!("{}: {why}", path.display()));
        let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| wrong(error.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("there is no certificate in it (PEM)".to_owned()));
        }
        Ok(Self(Some(certificates)))
    }

    fn connector(&self) -> Result<TlsConnector, InvalidServer> {
        let mut roots = RootCertStore::empty();
        match &self.0 {
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            Some(certificates) => {
                for certificate in certificates {
                    roots.add(certificate.clone()).map_err(unusable)?;
                }
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

fn unusable(error: impl std::error::Error) -> InvalidServer {
    InvalidServer::CaFile(format!("a certificate cannot be used: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Server, InvalidServer> {
        Server::parse(url, None, Duration::from_secs(1))
    }

    #[test]
    fn a_url_says_where_how_and_as_whom() {
        let server = parse("smtp://127.0.0.1:1025").expect("a server");
        assert_eq!((server.host.as_str(), server.port), ("127.0.0.1", 1025));
        assert!(matches!(server.security, Security::Plain) && server.credentials.is_none());
        let server = parse("smtps://ada%40x:se%2Fcret@mail.example/shop.example").expect("a server");
        assert_eq!((server.host.as_str(), server.port), ("mail.example", 465));
        assert!(matches!(server.security, Security::Implicit(..)));
        assert_eq!(server.credentials, Some(Credentials::new("ada@x".into(), "se/cret".into())));
        assert_eq!(server.hello, ClientId::Domain("shop.example".into()));
        let server = parse("smtp://mail.example?tls=required").expect("a server");
        assert!(matches!(server.security, Security::Required(..)) && server.port == 587);
        let server = parse("smtp://[::1]:25?tls=opportunistic").expect("a server");
        assert!(matches!(server.security, Security::Opportunistic(..)) && server.host == "::1");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_so_is_a_password_that_anybody_could_read() {
        for wrong in [
            "",
            "mail.example:25",
            "http://mail.example",
            "smtp://mail.example?tls=maybe",
            "smtp://mail.example?tsl=required",
            "smtps://mail.example?tls=required",
            "smtp://ada@mail.example",
        ] {
            assert!(matches!(parse(wrong), Err(InvalidServer::Url)), "{wrong}");
        }
        for readable in ["smtp://a:b@mail.example", "smtp://a:b@mail.example?tls=opportunistic"] {
            assert!(matches!(parse(readable), Err(InvalidServer::PlainPassword)), "{readable}");
        }
        for safe in ["smtp://a:b@localhost", "smtp://a:b@127.0.0.1:25", "smtp://a:b@m.example?tls=required"] {
            assert!(parse(safe).is_ok(), "{safe}");
        }
    }
}
