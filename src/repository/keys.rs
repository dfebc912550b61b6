//! Who may open a repository: key slots around one keyring.
//!
//! The keyring holds what everything else is derived from: the key that names chunks, the secret that decides where
//! files are cut, and the master keys by generation. Each slot (`keys/ID`, JSON) has the keyring encrypted under a
//! passphrase, stretched by Argon2id, or under a key file. So a passphrase is changed by writing a new slot, and a new
//! generation of master key is begun without writing anything else anew: old objects name the generation that opens
//! them.

use super::{
    RepositoryError, Result,
    names::{Id, KEYS},
    seal::TAG,
};
use crate::providers::clock;
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// RFC 9106, the second recommended choice.
#[cfg(not(test))]
const STRETCH: Stretch = Stretch::Argon2id { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
/// Tests open repositories by the hundred; what a slot asks for stands in it.
#[cfg(test)]
const STRETCH: Stretch = Stretch::Argon2id { memory_kib: 32, passes: 1, lanes: 4 };
/// A slot that asks for more was not written by Muster.
const MOST_MEMORY_KIB: u32 = 1024 * 1024;
const MOST_PASSES: u32 = 64;
/// A key file holds at least so many bytes, since nothing stretches it.
const SHORTEST_KEY_FILE: usize = 32;

pub(super) fn random() -> Result<[u8; 32]> {
    clock::random().map_err(|e| RepositoryError::Refused(format!("the operating system gives no random bytes: {e}")))
}

/// The secrets of a repository.
pub struct Keyring {
    chunk: SecretBox<[u8; 32]>,
    cut: SecretBox<[u8; 32]>,
    current: u32,
    masters: BTreeMap<u32, SecretBox<[u8; 32]>>,
}

/// The keyring as it stands encrypted in a slot.
#[derive(Serialize, Deserialize)]
struct Plain {
    chunk: String,
    cut: String,
    current: u32,
    masters: BTreeMap<u32, String>,
}

fn secret(bytes: [u8; 32]) -> SecretBox<[u8; 32]> {
    SecretBox::new(Box::new(bytes))
}

impl Keyring {
    pub fn new() -> Result<Self> {
        Ok(Self { chunk: secret(random()?), cut: secret(random()?), current: 1, masters: BTreeMap::from([(1, secret(random()?))]) })
    }
    /// The same secrets once more, for another place of the same repository.
    #[must_use]
    pub fn again(&self) -> Self {
        let copy = |s: &SecretBox<[u8; 32]>| secret(*s.expose_secret());
        let masters = self.masters.iter().map(|(generation, s)| (*generation, copy(s))).collect();
        Self { chunk: copy(&self.chunk), cut: copy(&self.cut), current: self.current, masters }
    }
    /// A new generation: what is written from now on is under a new key, what is there stays readable.
    pub fn rotate(&mut self) -> Result<()> {
        self.current += 1;
        self.masters.insert(self.current, secret(random()?));
        Ok(())
    }
    #[must_use]
    pub fn current(&self) -> u32 {
        self.current
    }
    pub(super) fn master(&self, generation: u32) -> Option<&[u8; 32]> {
        self.masters.get(&generation).map(ExposeSecret::expose_secret)
    }
    /// The name of a chunk with this content. Keyed, so that who sees the names cannot tell what is stored.
    #[must_use]
    pub fn chunk_id(&self, content: &[u8]) -> Id {
        Id(*blake3::keyed_hash(self.chunk.expose_secret(), content).as_bytes())
    }
    #[must_use]
    pub fn cut_seed(&self) -> &[u8; 32] {
        self.cut.expose_secret()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let text = |s: &SecretBox<[u8; 32]>| hex::encode(s.expose_secret());
        let masters = self.masters.iter().map(|(g, s)| (*g, text(s))).collect();
        let plain = Plain { chunk: text(&self.chunk), cut: text(&self.cut), current: self.current, masters };
        // Strings and numbers: this cannot fail.
        serde_json::to_vec(&plain).unwrap_or_default()
    }
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let plain: Plain = serde_json::from_slice(bytes).ok()?;
        let key = |text: &str| {
            let mut key = [0; 32];
            hex::decode_to_slice(text, &mut key).ok().map(|()| secret(key))
        };
        let masters: Option<BTreeMap<_, _>> = plain.masters.iter().map(|(g, text)| Some((*g, key(text)?))).collect();
        Some(Self { chunk: key(&plain.chunk)?, cut: key(&plain.cut)?, current: plain.current, masters: masters? })
    }
}

/// What a person opens a repository with.
#[derive(Clone)]
pub enum Unlock {
    Passphrase(SecretString),
    /// The content of a key file.
    KeyFile(std::sync::Arc<SecretBox<Vec<u8>>>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum Stretch {
    Argon2id {
        memory_kib: u32,
        passes: u32,
        lanes: u32,
    },
    /// BLAKE3's key derivation: for key files, which are random already.
    Blake3,
}

/// One way to open a repository, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    pub id: String,
    pub created: jiff::Timestamp,
    /// Who made it, or what it is for.
    pub label: String,
    pub stretch: Stretch,
    salt: String,
    nonce: String,
    /// The keyring, encrypted.
    keyring: String,
}

/// The context string of BLAKE3's key derivation; part of the format.
const KEY_FILE: &str = "muster repository 2026-11 key file";

impl Slot {
    /// A new slot for the keyring of the repository whose `config` has the digest `config`.
    pub fn make(config: &Id, keyring: &Keyring, unlock: &Unlock, label: String, created: jiff::Timestamp) -> Result<Self> {
        let (salt, id, nonce) = (random()?, random()?, random()?);
        let stretch = match unlock {
            Unlock::Passphrase(_) => STRETCH,
            Unlock::KeyFile(_) => Stretch::Blake3,
        };
        let mut slot = Self {
            id: hex::encode(&id[..16]),
            created,
            label,
            stretch,
            salt: hex::encode(&salt[..16]),
            nonce: hex::encode(&nonce[..12]),
            keyring: String::new(),
        };
        let refused = || RepositoryError::Refused("the key could not be made".to_owned());
        let key = slot.wrapping_key(unlock)?.ok_or_else(refused)?;
        let mut sealed = keyring.to_bytes();
        key.seal_in_place_append_tag(slot.nonce().ok_or_else(refused)?, slot.bound_to(config), &mut sealed).map_err(|_| refused())?;
        slot.keyring = hex::encode(sealed);
        Ok(slot)
    }

    /// As it is stored: named by its digest, so that no bit of it changes unseen.
    pub fn stored(&self) -> Result<(String, Vec<u8>)> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|e| RepositoryError::Refused(e.to_string()))?;
        Ok((Id::of(&bytes).key(KEYS), bytes))
    }

    /// Why this can be no slot that Muster wrote, if it cannot. Whoever may write to the place may put one there, so it
    /// is looked at before it is tried.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        let bytes = |text: &str| hex::decode(text).ok().map(|bytes| bytes.len());
        if bytes(&self.salt) != Some(16) {
            return Some("its salt is not 16 bytes in hexadecimal digits".to_owned());
        }
        if bytes(&self.nonce) != Some(12) || bytes(&self.keyring).is_none_or(|length| length <= TAG) {
            return Some("its nonce or keyring is not in hexadecimal digits, or too short".to_owned());
        }
        let Stretch::Argon2id { memory_kib, passes, lanes } = self.stretch else { return None };
        if memory_kib > MOST_MEMORY_KIB || passes > MOST_PASSES {
            return Some("it asks for more memory or passes than any key of Muster's".to_owned());
        }
        Params::new(memory_kib, passes, lanes, Some(32)).err().map(|why| why.to_string())
    }

    /// What it takes to try it: memory times passes.
    #[must_use]
    pub fn cost(&self) -> u64 {
        match self.stretch {
            Stretch::Argon2id { memory_kib, passes, .. } => u64::from(memory_kib) * u64::from(passes),
            Stretch::Blake3 => 0,
        }
    }

    /// The keyring, if this slot opens with that.
    pub fn open(&self, config: &Id, unlock: &Unlock) -> Result<Option<Keyring>> {
        let damaged = || RepositoryError::damaged(self.name(), "it is no key slot of this format");
        if let Some(why) = self.fault() {
            return Err(RepositoryError::damaged(self.name(), why));
        }
        let Some(key) = self.wrapping_key(unlock)? else { return Ok(None) };
        let mut sealed = hex::decode(&self.keyring).map_err(|_| damaged())?;
        let Ok(plain) = key.open_in_place(self.nonce().ok_or_else(damaged)?, self.bound_to(config), &mut sealed) else {
            return Ok(None);
        };
        Keyring::from_bytes(plain).map(Some).ok_or_else(damaged)
    }

    /// A slot belongs to one repository and one identifier: put elsewhere, it opens nothing. The digest of `config`
    /// authenticates that object as well.
    fn bound_to(&self, config: &Id) -> Aad<Vec<u8>> {
        Aad::from(format!("{config}/{}", self.id).into_bytes())
    }
    fn name(&self) -> String {
        format!("key {}", self.id)
    }
    fn nonce(&self) -> Option<Nonce> {
        let mut nonce = [0; 12];
        hex::decode_to_slice(&self.nonce, &mut nonce).ok()?;
        Some(Nonce::assume_unique_for_key(nonce))
    }
    fn wrapping_key(&self, unlock: &Unlock) -> Result<Option<LessSafeKey>> {
        let Some(key) = self.stretched(unlock)? else { return Ok(None) };
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| RepositoryError::damaged(self.name(), "its key cannot be used"))?;
        Ok(Some(LessSafeKey::new(key)))
    }
    /// The bytes of the wrapping key. `None`: the slot is for another kind of secret.
    fn stretched(&self, unlock: &Unlock) -> Result<Option<[u8; 32]>> {
        let damaged = |why: &str| RepositoryError::damaged(self.name(), why);
        let salt = hex::decode(&self.salt).map_err(|_| damaged("its salt is not hexadecimal"))?;
        let mut key = [0; 32];
        match (unlock, self.stretch) {
            (Unlock::Passphrase(text), Stretch::Argon2id { memory_kib, passes, lanes }) => {
                let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(|e| damaged(&e.to_string()))?;
                Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                    .hash_password_into(text.expose_secret().as_bytes(), &salt, &mut key)
                    .map_err(|e| damaged(&e.to_string()))?;
            }
            (Unlock::KeyFile(content), Stretch::Blake3) => {
                let content = content.expose_secret();
                if content.len() < SHORTEST_KEY_FILE {
                    return Err(RepositoryError::Refused(format!(
                        "the key file has {} bytes; it takes at least {SHORTEST_KEY_FILE} random ones: head -c 64 /dev/urandom > FILE",
                        content.len()
                    )));
                }
                key = *blake3::Hasher::new_derive_key(KEY_FILE).update(&salt).update(content).finalize().as_bytes();
            }
            _ => return Ok(None),
        }
        Ok(Some(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase(text: &str) -> Unlock {
        Unlock::Passphrase(SecretString::from(text.to_owned()))
    }
    fn key_file(bytes: &[u8]) -> Unlock {
        Unlock::KeyFile(std::sync::Arc::new(SecretBox::new(Box::new(bytes.to_vec()))))
    }
    fn slot(keyring: &Keyring, unlock: &Unlock) -> Slot {
        Slot::make(&Id([1; 32]), keyring, unlock, "ana@bridge".to_owned(), jiff::Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn a_slot_opens_with_its_own_secret_in_its_own_repository() {
        let keyring = Keyring::new().unwrap();
        for (right, wrong) in [(passphrase("tide"), passphrase("ebb")), (key_file(&[7; 32]), key_file(&[8; 32]))] {
            let slot = slot(&keyring, &right);
            let again: Slot = serde_json::from_str(&serde_json::to_string(&slot).unwrap()).unwrap();
            let opened = again.open(&Id([1; 32]), &right).unwrap().unwrap();
            assert_eq!(opened.to_bytes(), keyring.to_bytes());
            assert!(again.open(&Id([1; 32]), &wrong).unwrap().is_none());
            assert!(again.open(&Id([2; 32]), &right).unwrap().is_none());
            let text = format!("{again:?}");
            assert!(!text.contains(&hex::encode(keyring.chunk.expose_secret())), "{text}");
        }
    }

    #[test]
    fn wrapping_keys_are_those_of_the_document() {
        let document = include_str!("../../docs/repository-format.md");
        let (numbers, keyring) = ((0..32).collect::<Vec<u8>>(), Keyring::new().unwrap());
        let stretch = Stretch::Argon2id { memory_kib: 65_536, passes: 3, lanes: 4 };
        for (unlock, stretch, expected) in [
            (passphrase("correct horse"), stretch, "577f1ff37e9a3e52c97d39f8e83891c1b73b0e87ffe0429cee8ede2fb005fe44"),
            (key_file(&numbers), Stretch::Blake3, "0632851d8baf2b695b1b0ad632c8207d1bd9eccb9485966bd4d5793a164c48e5"),
        ] {
            let slot = Slot { stretch, salt: hex::encode(&numbers[..16]), ..slot(&keyring, &unlock) };
            assert_eq!(slot.fault(), None);
            assert_eq!(hex::encode(slot.stretched(&unlock).unwrap().unwrap()), expected);
            assert!(document.contains(expected));
        }
    }

    #[test]
    fn what_asks_for_too_much_is_refused() {
        let keyring = Keyring::new().unwrap();
        let mut slot = slot(&keyring, &passphrase("tide"));
        slot.stretch = Stretch::Argon2id { memory_kib: u32::MAX, passes: 1, lanes: 1 };
        assert!(slot.open(&Id([1; 32]), &passphrase("tide")).is_err());
        let good = self::slot(&keyring, &passphrase("tide"));
        assert_eq!(good.fault(), None);
        let (salt, nonce, empty) = ("00".repeat(15), "0g".repeat(12), String::new());
        for bad in [
            Slot { salt, ..good.clone() },
            Slot { nonce, ..good.clone() },
            Slot { keyring: empty, ..good.clone() },
            Slot { stretch: Stretch::Argon2id { memory_kib: 65_536, passes: 3, lanes: 0 }, ..good.clone() },
            Slot { stretch: Stretch::Argon2id { memory_kib: 8, passes: 1, lanes: 4 }, ..good },
        ] {
            assert!(bad.fault().is_some() && bad.open(&Id([1; 32]), &passphrase("tide")).is_err(), "{bad:?}");
        }
        assert!(Slot::make(&Id([1; 32]), &keyring, &key_file(b"short"), String::new(), jiff::Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn a_new_generation_leaves_the_old_readable() {
        let mut keyring = Keyring::new().unwrap();
        let old = *keyring.master(1).unwrap();
        keyring.rotate().unwrap();
        assert_eq!((keyring.current(), keyring.master(1)), (2, Some(&old)));
        let chunk = keyring.chunk_id(b"x");
        assert_eq!(Keyring::from_bytes(&keyring.to_bytes()).unwrap().chunk_id(b"x"), chunk);
    }
}
