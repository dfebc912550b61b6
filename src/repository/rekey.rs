//! Adding, replacing and removing the keys of a repository. Data are never written anew for it.

use super::{
    RepositoryError, Result,
    keys::{Slot, Unlock},
    names::{Id, KEYS},
    open::{Found, Repository},
    slots::{slots, write_slot},
};
use crate::providers::port::ObjectWrite;

async fn make(repository: &Repository, unlock: &Unlock, label: &str, now: jiff::Timestamp) -> Result<Slot> {
    let (config, keyring, unlock, label) = (repository.config, repository.keyring.again(), unlock.clone(), label.to_owned());
    let slot = tokio::task::spawn_blocking(move || Slot::make(&config, &keyring, &unlock, label, now));
    slot.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?
}

/// One more key for the same repository.
pub async fn add(repository: &Repository, store: &dyn ObjectWrite, unlock: &Unlock, label: &str, now: jiff::Timestamp) -> Result<Slot> {
    let slot = make(repository, unlock, label, now).await?;
    write_slot(store, &slot).await?;
    Ok(slot)
}

/// A new generation of master key under a new key; all other keys are removed, also what is damaged and may be one once
/// more when somebody mends it. Gives the new one and how many went.
pub async fn rotate(
    repository: &mut Repository,
    store: &dyn ObjectWrite,
    unlock: &Unlock,
    label: &str,
    now: jiff::Timestamp,
) -> Result<(Slot, usize)> {
    let Found { whole, damaged } = slots(store).await?;
    let old: Vec<String> = whole.into_iter().map(|(key, _)| key).chain(damaged.iter().filter_map(place)).collect();
    repository.keyring.rotate()?;
    let slot = add(repository, store, unlock, label, now).await?;
    // Only now: until the new key is there, the old ones open.
    for key in &old {
        store.delete(key).await.map_err(RepositoryError::store(key))?;
    }
    Ok((slot, old.len()))
}

/// What was taken away.
pub enum Removed {
    Key(Slot),
    /// An object that was no key any more, or never one: its place.
    Damaged(String),
}

/// Takes a key away, by the beginning of its identifier, or what is damaged among the keys, by that of its object's name.
/// The last key stays.
pub async fn remove(store: &dyn ObjectWrite, name: &str) -> Result<Removed> {
    let Found { whole, damaged } = slots(store).await?;
    let fits: Vec<&(String, Slot)> = whole.iter().filter(|(_, slot)| !name.is_empty() && slot.id.starts_with(name)).collect();
    let of_object = |key: &String| !name.is_empty() && key.strip_prefix(KEYS).is_some_and(|id| id.starts_with(name));
    let bad: Vec<String> = damaged.iter().filter_map(place).filter(of_object).collect();
    let (key, removed) = match (&*fits, &*bad) {
        ([_], []) if whole.len() == 1 => {
            return Err(RepositoryError::Refused("this is the only key: without it nobody opens the repository again".to_owned()));
        }
        ([(key, slot)], []) => (key, Removed::Key(slot.clone())),
        ([], [key]) => (key, Removed::Damaged(key.clone())),
        _ => {
            return Err(RepositoryError::Refused(format!(
                "`{name}` is not the beginning of one key's identifier: see `muster backup key list`"
            )));
        }
    };
    store.delete(key).await.map_err(RepositoryError::store(key))?;
    Ok(removed)
}

/// Where a damaged key lies.
fn place(damaged: &RepositoryError) -> Option<String> {
    let RepositoryError::Damaged { object, .. } = damaged else { return None };
    Id::in_key(object, KEYS).map(|_| object.clone())
}
