//! Who may open a repository: the key slots, each with a password or a key file of its own.

use super::{
    super::{Muster, ServiceError},
    look::instant,
    place::{Where, key_file, passphrase},
};
use crate::model::estate::SecretRef;
use crate::providers::who;
use crate::repository::{
    keys::{Slot, Stretch, Unlock},
    rekey,
    slots::slots,
};
use serde::Serialize;
use std::path::PathBuf;

/// The secret of a new slot.
#[derive(Clone, Debug, Default)]
pub struct NewSecret {
    pub password_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub label: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Key {
    pub id: String,
    pub label: String,
    #[serde(serialize_with = "instant")]
    pub created: jiff::Timestamp,
    /// `password` or `key-file`.
    pub opens_with: &'static str,
    /// It is the one that opened the repository for this command.
    pub current: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct Keys {
    pub keys: Vec<Key>,
    /// What lies among them and opens nothing: what is wrong with it.
    pub damaged: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct KeyGone {
    /// The key that is gone.
    pub key: Option<Key>,
    /// Or the place of what was none any more, or never one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damaged: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Rotated {
    pub key: Key,
    /// The slots that are gone: whoever had one of these needs a new one.
    pub removed: Vec<Key>,
    pub generation: u32,
}

impl Key {
    fn of(slot: &Slot, current: bool) -> Self {
        let opens_with = match slot.stretch {
            Stretch::Argon2id { .. } => "password",
            Stretch::Blake3 => "key-file",
        };
        Self { id: slot.id.clone(), label: slot.label.clone(), created: slot.created, opens_with, current }
    }
}

impl Muster {
    pub async fn backup_keys(&self, at: &Where) -> Result<Keys, ServiceError> {
        let place = self.backup_place(at)?;
        let repository = place.open().await?.repository;
        let mut keys = Vec::new();
        let found = slots(&*repository.store).await?;
        for (key, slot) in found.whole {
            keys.push(Key::of(&slot, key == repository.opened_by));
        }
        keys.sort_by_key(|key| key.created);
        Ok(Keys { keys, damaged: found.damaged.iter().map(ToString::to_string).collect() })
    }

    /// One more way to open it.
    pub async fn backup_key_add(&self, at: &Where, new: &NewSecret) -> Result<Key, ServiceError> {
        let unlock = new.unlock()?.ok_or_else(|| {
            ServiceError::Usage("what should the new key be? Write --new-password-file FILE or --new-key-file FILE".to_owned())
        })?;
        let opened = self.backup_open(at).await?;
        let slot = rekey::add(&opened.repository, &*opened.store, &unlock, &new.label(), self.clock.now()).await?;
        Ok(Key::of(&slot, false))
    }

    /// A new master key, and one slot that opens it instead of all others. Without a new secret the old one stays.
    pub async fn backup_key_rotate(&self, at: &Where, new: &NewSecret, revoke_others: bool) -> Result<Rotated, ServiceError> {
        let place = self.backup_place(at)?;
        let unlock = new.unlock()?.unwrap_or_else(|| place.unlock.clone());
        let mut opened = place.open().await?.repository;
        let old = slots(&*place.store).await?.whole;
        if old.len() > 1 && !revoke_others {
            return Err(ServiceError::Usage(format!(
                "the repository has {} keys, and after this only one opens it: write --revoke-others if that is meant; then `muster backup key add` for each of the others",
                old.len()
            )));
        }
        let Some(repository) = std::sync::Arc::get_mut(&mut opened) else {
            return Err(ServiceError::Usage("the repository is in use by this very process: try again".to_owned()));
        };
        let (slot, _) = rekey::rotate(repository, &*place.store, &unlock, &new.label(), self.clock.now()).await?;
        let removed = old.iter().map(|(_, slot)| Key::of(slot, false)).collect();
        Ok(Rotated { key: Key::of(&slot, true), removed, generation: opened.keyring.current() })
    }

    /// By the beginning of its identifier; what is damaged, by that of its object's name.
    pub async fn backup_key_remove(&self, at: &Where, name: &str) -> Result<KeyGone, ServiceError> {
        let place = self.backup_place(at)?;
        let opened = place.open().await?;
        let mut fits = slots(&*place.store).await?.whole;
        fits.retain(|(_, slot)| !name.is_empty() && slot.id.starts_with(name));
        // Another name, or one of several, is refused below.
        if let [(key, _)] = &*fits
            && *key == opened.repository.opened_by
        {
            return Err(ServiceError::Usage(format!(
                "{name} is the key that this command opened the repository with, so it stays: open it with another, or `muster backup key rotate`"
            )));
        }
        Ok(match rekey::remove(&*place.store, name).await? {
            rekey::Removed::Key(slot) => KeyGone { key: Some(Key::of(&slot, false)), damaged: None },
            rekey::Removed::Damaged(place) => KeyGone { key: None, damaged: Some(place) },
        })
    }
}

impl NewSecret {
    fn label(&self) -> String {
        self.label.clone().unwrap_or_else(|| format!("{}@{}", who::person(), who::host()))
    }
    fn unlock(&self) -> Result<Option<Unlock>, ServiceError> {
        Ok(match (&self.password_file, &self.key_file) {
            (_, Some(file)) => Some(key_file(file)?),
            (Some(file), None) => Some(passphrase(&SecretRef::File(file.clone()), "`--new-password-file`")?),
            (None, None) => None,
        })
    }
}
