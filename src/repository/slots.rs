//! The key slots as they lie in the store. Whoever may write there can add one, without any password: so a slot that is
//! not what Muster writes is passed over and named, and keeps no other from opening the repository.

use super::{
    RepositoryError, Result,
    keys::{Keyring, Slot, Unlock},
    names::{Id, KEYS},
    open::{AT_ONCE, Found, listed, put, read_whole, retried},
};
use crate::providers::port::{ObjectMeta, ObjectRead, ObjectWrite};
use futures::{StreamExt, stream};

/// Muster's have less than a kilobyte. What is larger is not even read.
const LARGEST: u64 = 64 * 1024;

/// The slots that may open the repository, with their places, and what is wrong with the others.
pub async fn slots(store: &dyn ObjectRead) -> Result<Found<Vec<(String, Slot)>>> {
    let ours = listed(store, KEYS).await?.into_iter().filter_map(|meta| Some((Id::in_key(&meta.key, KEYS)?, meta)));
    let each = stream::iter(ours).map(|(id, meta)| async move { (meta.key.clone(), one(store, &id, &meta).await) });
    let mut found = Found { whole: Vec::new(), damaged: Vec::new() };
    for (key, slot) in each.buffered(AT_ONCE).collect::<Vec<_>>().await {
        match slot {
            Ok(slot) => found.whole.push((key, slot)),
            // Removed since it was listed.
            Err(RepositoryError::Missing { .. }) => {}
            Err(error @ RepositoryError::Damaged { .. }) => found.damaged.push(error),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn one(store: &dyn ObjectRead, id: &Id, meta: &ObjectMeta) -> Result<Slot> {
    let damaged = |why: String| RepositoryError::damaged(&meta.key, why);
    if meta.size > LARGEST {
        return Err(damaged(format!("it has {} bytes, more than any key", meta.size)));
    }
    let bytes = retried(&meta.key, || read_whole(store, &meta.key)).await?;
    if Id::of(&bytes) != *id {
        return Err(damaged("its bytes do not have the digest that its name says".to_owned()));
    }
    let slot: Slot = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    slot.fault().map_or(Ok(slot), |why| Err(damaged(why)))
}

/// The keyring, out of the cheapest slot that opens with that, and the place of this slot. Of several that cost the same it is
/// the one that knows the latest master key: a rotation that keeps the secret leaves a second place with two slots for it, and
/// who has an old one can put it back. What a slot says outside of its box, such as when it was made, anybody can write.
pub(super) async fn open(store: &dyn ObjectRead, config: &Id, unlock: &Unlock) -> Result<(String, Keyring)> {
    let Found { whole, damaged } = slots(store).await?;
    let mut slots: Vec<(String, Slot)> = whole;
    // A slot that takes minutes to try, which anybody may have put there, must not come before ours.
    slots.sort_by_key(|(_, slot)| slot.cost());
    let (config, unlock) = (*config, unlock.clone());
    let mut damaged: Vec<String> = damaged.iter().map(ToString::to_string).collect();
    // Argon2id takes a tenth of a second and 64 MiB.
    let tried = tokio::task::spawn_blocking(move || {
        let mut opened: Option<(String, Keyring, u64)> = None;
        for (key, slot) in &slots {
            if opened.as_ref().is_some_and(|(_, _, cost)| slot.cost() > *cost) {
                break;
            }
            match slot.open(&config, &unlock) {
                Ok(Some(keyring)) if opened.as_ref().is_none_or(|(_, known, _)| keyring.current() > known.current()) => {
                    opened = Some((key.clone(), keyring, slot.cost()));
                }
                Ok(_) => {}
                Err(error) if error.is_loss() => damaged.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        opened.map(|(key, keyring, _)| (key, keyring)).ok_or(RepositoryError::WrongKey { slots: slots.len(), damaged })
    });
    tried.await.map_err(|e| RepositoryError::Interrupted(e.to_string()))?
}

pub async fn write_slot(store: &dyn ObjectWrite, slot: &Slot) -> Result<()> {
    let (key, bytes) = slot.stored()?;
    put(store, &key, bytes.into()).await
}
