//! The control plane's certificate authority, the API server's certificate and the key of service accounts.

use std::path::PathBuf;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::WorkDir;

/// Where the files are, all PEM.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The certificate of the authority that clients trust.
    pub authority: PathBuf,
    /// The API server's certificate.
    pub server: PathBuf,
    /// Its private key.
    pub server_key: PathBuf,
    /// The private key that service account tokens are signed with.
    pub account_key: PathBuf,
    /// The public half of it.
    pub account_public: PathBuf,
}

impl Certificates {
    /// Makes all of them, for a server known by `names` (DNS names and addresses).
    ///
    /// # Errors
    /// When a name is neither a DNS name nor an address, or a file cannot be written.
    pub fn generate(folder: &WorkDir, names: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "pointsman-e2e");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().context("making the authority's key")?;
        let authority = params
            .self_signed(&key)
            .context("signing the authority's certificate")?;
        let issuer = Issuer::new(params, key);

        let names: Vec<String> = names.into_iter().collect();
        let mut params = CertificateParams::new(names).context("the API server's names")?;
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_key = KeyPair::generate().context("making the API server's key")?;
        let server = params
            .signed_by(&server_key, &issuer)
            .context("signing the API server's certificate")?;

        let account = KeyPair::generate().context("making the key of service accounts")?;
        Ok(Self {
            authority: folder.write("ca.crt", authority.pem())?,
            server: folder.write("apiserver.crt", server.pem())?,
            server_key: folder.write("apiserver.key", server_key.serialize_pem())?,
            account_key: folder.write("service-accounts.key", account.serialize_pem())?,
            account_public: folder.write("service-accounts.pub", account.public_key_pem())?,
        })
    }
}
