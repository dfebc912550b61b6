//! Adding, replacing and removing the keys of a repository. Data are never written anew for it.

use super::{
    RepositoryError, Result,
    keys::{Slot, Unlock},
    open::{Repository, slots, write_slot},
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

/// A new generation of master key under a new key; all other keys are removed. Gives the new one and how many went.
pub async fn rotate(
    repository: &mut Repository,
    store: &dyn ObjectWrite,
    unlock: &Unlock,
    label: &str,
    now: jiff::Timestamp,
) -> Result<(Slot, usize)> {
    let old = slots(store).await?;
    repository.keyring.rotate()?;
    let slot = add(repository, store, unlock, label, now).await?;
    // Only now: until the new key is there, the old ones open.
    for (key, _) in &old {
        store.delete(key).await.map_err(RepositoryError::store(key))?;
    }
    Ok((slot, old.len()))
}

/// Takes a key away, by the beginning of its identifier. The last one stays.
pub async fn remove(store: &dyn ObjectWrite, name: &str) -> Result<Slot> {
    let all = slots(store).await?;
    let mut fits = all.iter().filter(|(_, slot)| !name.is_empty() && slot.id.starts_with(name));
    let (Some((key, slot)), None) = (fits.next(), fits.next()) else {
        return Err(RepositoryError::Refused(format!(
            "`{name}` is not the beginning of one key's identifier: see `muster backup key list`"
        )));
    };
    if all.len() == 1 {
        return Err(RepositoryError::Refused("this is the only key: without it nobody opens the repository again".to_owned()));
    }
    store.delete(key).await.map_err(RepositoryError::store(key))?;
    Ok(slot.clone())
}
