//! Two things of the contract of object stores that take their servers at their word: of several writers of one name, however
//! they write, one wins, and what is retained can be made firmer and not less so.

use crate::{
    stores::{MIB, chunks, keys, noise, none, whole},
    stores_servers::{Server, moto},
};
use aws_sdk_s3::{
    primitives::DateTime,
    types::{ObjectLockRetention, ObjectLockRetentionMode},
};
use jiff::Timestamp;
use muster::providers::port::*;
use sha2::{Digest, Sha256};

/// Files, and streams in one part and in several. A lost one leaves nothing, and one that comes late changes nothing.
/// `parts_at_once`: also of several that end at once, in parts, all but one are told.
pub async fn one_of_many_however_they_write(store: &dyn ObjectWrite, parts_at_once: bool) {
    let (dir, none) = (tempfile::tempdir().unwrap(), none());
    for (how, size) in [("file", 100_000), ("stream", 100_000), ("stream", 9 * MIB)] {
        let key = format!("race/{how}/{size}");
        let bodies: Vec<Vec<u8>> = (0..3).map(|n| noise(size, n)).collect();
        let write = async |n: usize| {
            if how == "stream" {
                return store.put_stream(&key, chunks(bodies[n].clone()), &none, true).await;
            }
            let path = dir.path().join(n.to_string());
            std::fs::write(&path, &bodies[n]).unwrap();
            let sha256 = hex::encode(Sha256::digest(&bodies[n]));
            store.put_file(&key, &path, &sha256, &none, true).await
        };
        let answers = futures::future::join_all((0..3).map(&write)).await;
        let won: Vec<usize> = (0..3).filter(|n| answers[*n].is_ok()).collect();
        let lost = |answer: &PortResult<ObjectMeta>| matches!(answer, Err(PortError::Conflict { .. } | PortError::Throttled { .. }));
        let told = answers.iter().filter(|answer| lost(answer)).count();
        let least = if parts_at_once || size < 9 * MIB { 2 } else { 0 };
        assert!(!won.is_empty() && won.len() + told == 3 && told >= least, "{key}: {answers:?}");
        let late = write((won[0] + 1) % 3).await;
        assert!(matches!(&late, Err(PortError::Conflict { found }) if found.contains(&format!("{size} bytes"))), "{key}: {late:?}");
        let stands = whole(store.get(&key).await.unwrap()).await;
        assert!(won.iter().any(|n| bodies[*n] == stands), "{key}");
        assert_eq!(keys(store, "race/").await, std::slice::from_ref(&key));
        store.delete(&key).await.unwrap();
    }
}

/// From governance to compliance, which is a change of the mode: whoever locks may do it, and nobody can take it back.
pub async fn made_firmer(server: &Server, vault: &dyn ObjectWrite, guards_mode: bool) {
    let until = Timestamp::from_second(Timestamp::now().as_second() + 3_600).unwrap();
    vault.put("firmer", b"x".to_vec().into(), &none(), true).await.unwrap();
    vault.retain("firmer", until, LockMode::Governance).await.unwrap();
    // What the server says to who does not ask to bypass.
    let clients = server.clients();
    let by = ObjectLockRetention::builder().mode(ObjectLockRetentionMode::Compliance);
    let by = by.retain_until_date(DateTime::from_secs(until.as_second())).build();
    if guards_mode {
        let call = clients.s3().await.unwrap().write.put_object_retention().bucket("vault").key("v/firmer").retention(by);
        call.send().await.expect_err("the mode changes without the right to bypass");
        assert_eq!(vault.retained("firmer").await, Ok(Some((until, Some(LockMode::Governance)))));
    }
    vault.retain("firmer", until, LockMode::Compliance).await.unwrap();
    assert_eq!(vault.retained("firmer").await, Ok(Some((until, Some(LockMode::Compliance)))));
    let back = vault.retain("firmer", until, LockMode::Governance).await;
    assert!(matches!(back, Err(PortError::Refused(_))), "{back:?}");
    assert_eq!(vault.retained("firmer").await, Ok(Some((until, Some(LockMode::Compliance)))));
}

/// moto does not keep all of the contract: it takes what has another checksum than it says, and looks for what is there
/// before it writes, so that of several at once all may win. Who comes late is told.
#[tokio::test]
async fn moto_tells_who_comes_late_with_an_upload_in_parts() {
    let server = moto().await;
    server.bucket("models", false).await;
    let store = server.open("s3://models/scoring");
    store.put_stream("k", chunks(noise(9 * MIB, 1)), &none(), true).await.unwrap();
    let late = store.put_stream("k", chunks(noise(9 * MIB, 2)), &none(), true).await;
    assert!(matches!(late, Err(PortError::Conflict { .. })), "{late:?}");
    assert!(whole(store.get("k").await.unwrap()).await == noise(9 * MIB, 1));
}
