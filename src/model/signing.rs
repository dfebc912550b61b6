//! What a person signs, and whether a signature is that person's. OpenSSH's own form (SSHSIG), so that
//! `ssh-keygen -Y sign`, an agent and a hardware key make the same thing that Muster makes.
//!
//! Pure: keys and signatures are text, nothing is read. RSA is not among the algorithms: the library
//! for it has an open advisory, and every OpenSSH of this decade makes Ed25519 keys.

use super::{estate::Estate, ids::PersonName};
use serde::{Deserialize, Serialize};
use ssh_key::{Algorithm, EcdsaCurve, HashAlg, PublicKey, SshSig};

/// The namespace of `ssh-keygen -Y sign -n`: a signature made for anything else is none here.
pub const NAMESPACE: &str = "muster";

/// A statement with the signature that makes it somebody's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The exact text that was signed.
    pub statement: String,
    /// The key's fingerprint: `SHA256:…`.
    pub key: String,
    /// In OpenSSH's armour.
    pub signature: String,
}

/// A public key as the estate lists it.
pub fn public_key(text: &str) -> Result<PublicKey, String> {
    let why = |e: ssh_key::Error| format!("it is not a public key in OpenSSH's format ({e}); it begins like `ssh-ed25519 AAAA…`");
    let key = PublicKey::from_openssh(text.trim()).map_err(why)?;
    match key.algorithm() {
        Algorithm::Ed25519 | Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 | Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 } => {
            Ok(key)
        }
        other => Err(format!("keys of the kind `{other}` are not taken; make one with `ssh-keygen -t ed25519`")),
    }
}

#[must_use]
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// The fingerprint of the key of `by` that signed exactly this statement.
pub fn verify(estate: &Estate, by: &str, statement: &str, signature: &str) -> Result<String, String> {
    let person = estate.people.get(&PersonName::from(by)).ok_or_else(|| format!("the estate lists no person `{by}`"))?;
    let signature = SshSig::from_pem(signature.trim())
        .map_err(|e| format!("this is not an SSH signature ({e}); make one with `ssh-keygen -Y sign -n {NAMESPACE} -f KEY FILE`"))?;
    if signature.namespace() != NAMESPACE {
        let other = signature.namespace();
        return Err(format!("the signature was made for `{other}`, not for `{NAMESPACE}` (`ssh-keygen -Y sign -n {NAMESPACE}`)"));
    }
    let keys = person.keys.iter().filter_map(|text| public_key(text).ok());
    let Some(key) = keys.into_iter().find(|key| key.key_data() == signature.public_key()) else {
        let other = PublicKey::from(signature.public_key().clone());
        return Err(format!("the key that signed ({}) is none that the estate lists for `{by}`", fingerprint(&other)));
    };
    key.verify(NAMESPACE, statement.as_bytes(), &signature).map_err(|_| {
        "the signature is not over this very statement: run, step, plan, facts, time or name differ; print it anew and sign that".to_owned()
    })?;
    Ok(fingerprint(&key))
}
