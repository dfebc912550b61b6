//! TLS of a connection to PostgreSQL, as libpq's `sslmode` means it: `prefer` and `require` encrypt and believe
//! whoever answers, `verify-ca` asks for a certificate of the given authority, `verify-full` for one that names
//! the host as well.

use super::{
    error::{PgError, PgResult},
    target::{Roots, SslMode, Target},
};
use std::{path::Path, sync::Arc};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            WebPkiServerVerifier,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
            verify_server_name,
        },
        crypto::{CryptoProvider, aws_lc_rs},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
        server::ParsedCertificate,
    },
};

/// What is checked of the certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Check {
    Nothing,
    Authority,
    AuthorityAndName,
}

/// # Errors
/// When the authority's certificate is missing or cannot be read.
pub fn connector(target: &Target) -> PgResult<TlsConnector> {
    let check = match (target.ssl, &target.roots) {
        (SslMode::VerifyFull, _) => Check::AuthorityAndName,
        (SslMode::VerifyCa, _) | (SslMode::Require, Some(_)) => Check::Authority,
        _ => Check::Nothing,
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (mut chain, mut given) = (None, Vec::new());
    if check != Check::Nothing {
        let roots;
        (roots, given) = authorities(target)?;
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        chain = Some(built.map_err(|e| PgError::Config(format!("the authority's certificate cannot be used: {e}")))?);
    }
    let verifier = Arc::new(Verifier { check, chain, given, provider: Arc::clone(&provider) });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| PgError::Config(format!("TLS cannot be set up: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name that the certificate must have.
/// # Errors
/// When the host is neither a name nor an address.
pub fn server_name(target: &Target) -> PgResult<ServerName<'static>> {
    ServerName::try_from(target.host.clone()).map_err(|_| PgError::Config(format!("`{}` is not a host's name", target.host)))
}

/// Who may vouch, and the certificates of the file as they are.
fn authorities(target: &Target) -> PgResult<(RootCertStore, Vec<CertificateDer<'static>>)> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".postgresql/root.crt"));
    let file = match &target.roots {
        Some(Roots::System) => {
            let mut store = RootCertStore::empty();
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return Ok((store, Vec::new()));
        }
        Some(Roots::File(file)) => file.clone(),
        None => home().filter(|file| file.exists()).ok_or_else(|| {
            PgError::Config(
                "sslmode asks for a verified server, and no authority is known: name its certificate by `sslrootcert=FILE` \
                 (`system` for those that the machine trusts), or put it in ~/.postgresql/root.crt"
                    .to_owned(),
            )
        })?,
    };
    let wrong = |why: &dyn std::fmt::Display| PgError::Config(format!("the authority's certificate `{}`: {why}", file.display()));
    let (mut store, mut given) = (RootCertStore::empty(), Vec::new());
    for certificate in CertificateDer::pem_file_iter(&file).map_err(|e| wrong(&e))? {
        let certificate = certificate.map_err(|e| wrong(&e))?;
        given.push(certificate.clone());
        store.add(certificate).map_err(|e| wrong(&e))?;
    }
    if store.is_empty() {
        return Err(wrong(&"there is no certificate in it (PEM)"));
    }
    Ok((store, given))
}

#[derive(Debug)]
struct Verifier {
    check: Check,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// A server may have one of these itself: a certificate that vouches for itself is no authority to the verifier.
    given: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        if self.given.contains(end_entity) {
            if self.check == Check::AuthorityAndName {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        match chain.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            // The chain was judged before the name.
            Err(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
                if self.check == Check::Authority =>
            {
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tokio_rustls::rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tokio_rustls::rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
