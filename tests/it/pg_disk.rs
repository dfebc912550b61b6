//! The repository's disk fills up under a base backup: there is no backup, what is there stays whole, and with more room the
//! next one goes through.

use crate::{
    disk::{in_a_room_of_its_own, said},
    pg::{Cluster, Home},
    place::Place,
};
use serde_json::Value;

#[test]
fn a_disk_that_fills_up_under_a_base_backup_leaves_no_half_of_one() {
    let home = Home::new();
    let cluster = Cluster::with(&home, "fsync=off\nmax_wal_senders=6\nautovacuum=off\n");
    cluster
        .sql("CREATE TABLE noise AS SELECT string_agg(md5(random()::text), '') AS text FROM generate_series(1, 800000) g GROUP BY g / 50");
    let place = Place::new();
    place.file("pw", "tide-and-ebb\n");
    let url = cluster.url("");
    let script = format!(
        "said() {{ n=$1; shift; \"$MUSTER\" --json \"$@\" --repo @/vault --password-file @/pw > @/out$n 2> @/err$n && echo 0 > @/code$n || echo $? > @/code$n; }}
mkdir @/vault
mount -t tmpfs -o size=12m tmpfs @/vault
said 1 backup create {url}
said 2 backup list
said 3 backup verify --read-data
mount -o remount,size=400m @/vault
said 4 backup create {url}
said 5 backup verify --read-data
said 6 backup list\n"
    );
    if !in_a_room_of_its_own(&place, &script) {
        return;
    }
    let (code, out, err) = said(&place, 1);
    assert!(code != 0 && (err.contains("No space left") || err.contains("full")), "{code} {out} {err}");
    assert!(err.contains("/vault"), "it says where: {err}");
    let listed = |n: usize| -> Value { serde_json::from_str(said(&place, n).1.lines().last().unwrap()).unwrap() };
    assert_eq!(listed(2)["snapshots"].as_array().map(Vec::len), Some(0), "{}", listed(2));
    assert_eq!(said(&place, 3).0, 0, "what is there is whole: {} {}", said(&place, 3).1, said(&place, 3).2);
    assert_eq!((said(&place, 4).0, said(&place, 5).0), (0, 0), "{} {}", said(&place, 4).2, said(&place, 5).1);
    assert_eq!(listed(6)["snapshots"].as_array().map(Vec::len), Some(1));
    // Nothing of it is left on the server.
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_replication_slots"), "0");
}
