//! A server that runs on the same machine is told that a backup is under way, and its files are read where they are.

use crate::{
    pg::{Cluster, Home, other_user},
    pg_backup::{Load, amcheck, backup, checked, fill, place, put_log, restore},
};
use serde_json::Value;
use std::{fs, os::unix::fs::chown, process::Stdio};

fn create(place: &crate::place::Place, cluster: &Cluster) -> Value {
    backup(place, &["create", &cluster.url("postgres"), "--data-dir", cluster.data.to_str().unwrap()]).expect(0).last()
}

#[test]
fn files_are_read_where_they_are_and_only_what_changed() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    let ts = home.0.path().join("ts");
    fs::create_dir(&ts).unwrap();
    if let Some((uid, gid)) = other_user() {
        chown(&ts, Some(uid), Some(gid)).unwrap();
    }
    cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", ts.display()));
    fill(&cluster, 100_000);
    cluster.sql("CREATE TABLE there TABLESPACE fast AS SELECT * FROM big WHERE id < 1000");
    cluster.sql("CREATE UNLOGGED TABLE passing AS SELECT * FROM big");
    let unlogged = cluster.sql("SELECT pg_relation_filepath('passing')");
    let load = Load::on(&cluster);
    place.until("some writes", || load.acknowledged() > 20);
    let before = load.acknowledged();
    let first = create(&place, &cluster);
    let after = load.acknowledged();
    load.end();
    assert!(after > before && first["cluster"]["start"] != first["cluster"]["stop"], "{first}");
    let data = restore(&place, &home, "latest", "first");
    for gone in ["postmaster.pid", "postmaster.opts", &unlogged, "pg_internal.init"] {
        assert!(!data.join(gone).exists(), "{gone} is there");
    }
    assert!(data.join(format!("{unlogged}_init")).exists() && data.join("backup_label").exists());
    let log: Vec<_> = fs::read_dir(data.join("pg_wal")).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(log.iter().all(|name| name == "archive_status"), "{log:?}");
    put_log(&place, &first, &data);
    let oid = cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'");
    let (content, link) = (home.0.path().join("ts-back"), data.join("pg_tblspc").join(oid));
    fs::rename(&link, &content).unwrap();
    std::os::unix::fs::symlink(&content, &link).unwrap();
    let back = cluster.again(&data);
    let count: u64 = back.sql("SELECT count(*) FROM load").parse().unwrap();
    assert!((before..=after + 1).contains(&count), "{before} {count} {after}");
    assert_eq!(
        back.sql("SELECT (SELECT count(*) FROM big) || ' ' || (SELECT count(*) FROM there) || ' ' || (SELECT count(*) FROM passing)"),
        "100000 1000 0"
    );
    amcheck(&back);
    back.stop();

    // A change right behind a backup, in the same second and of the same size, is not passed over.
    let second = create(&place, &cluster);
    cluster.sql("UPDATE big SET note = 'at once' WHERE id = 77777");
    cluster.sql("CHECKPOINT");
    let third = create(&place, &cluster);
    let number = |made: &Value, name: &str| made[name].as_u64().unwrap();
    assert_eq!(third["parent"], second["snapshot"]);
    assert!(number(&third, "bytes_new") < 1 << 20, "{third}");
    let data = restore(&place, &home, "latest", "third");
    put_log(&place, &third, &data);
    let link = data.join("pg_tblspc").join(cluster.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'fast'"));
    fs::rename(&link, home.0.path().join("ts-third")).unwrap();
    std::os::unix::fs::symlink(home.0.path().join("ts-third"), &link).unwrap();
    let back = cluster.again(&data);
    assert_eq!(back.sql("SELECT count(*) FROM big WHERE note = 'at once'"), "1");
    back.stop();
    // What lies still is not read again.
    std::thread::sleep(std::time::Duration::from_secs(1));
    let fourth = create(&place, &cluster);
    assert!(number(&fourth, "bytes_read") * 4 < number(&fourth, "bytes"), "{fourth}");
}

#[test]
fn another_servers_directory_is_refused_and_a_lost_session_is_no_backup() {
    let (place, home) = (place(), Home::new());
    let cluster = checked(&home);
    let standby = cluster.standby(&home);
    fill(&cluster, 150_000);
    let of = |url: &str, data: &std::path::Path| backup(&place, &["create", url, "--data-dir", data.to_str().unwrap()]);
    let said = of(&cluster.url("postgres"), &standby.data).expect(2);
    assert!(said.err.contains("another server of the same cluster"), "{}", said.err);
    let said = of(&cluster.url("postgres"), place.root()).expect(2);
    assert!(said.err.contains("no data directory of PostgreSQL"), "{}", said.err);
    standby.stop();

    let mut child = place
        .command(&[
            "backup",
            "create",
            &cluster.url("postgres"),
            "--data-dir",
            cluster.data.to_str().unwrap(),
            "--repo",
            "vault",
            "--password-file",
            "pw",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let session = "FROM pg_stat_activity WHERE application_name = 'muster' AND query LIKE 'SELECT pg_backup_start%' AND state = 'idle'";
    place.until("the backup", || cluster.sql(&format!("SELECT count(*) {session}")) == "1");
    assert_eq!(cluster.sql(&format!("SELECT count(pg_terminate_backend(pid)) {session}")), "1");
    let mut told = String::new();
    std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut told).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{told}");
    assert!(told.contains("could not be ended") && told.contains("57P01"), "{told}");
    assert_eq!(backup(&place, &["list"]).expect(0).last()["snapshots"], serde_json::json!([]));
    create(&place, &cluster);
}

#[test]
fn a_runbook_backs_a_server_up() {
    let (place, home) = (place(), Home::new());
    let cluster = Cluster::primary(&home);
    let estate = format!(
        "regions: {{ east: {{}} }}\nrepositories: {{ vault: {{ url: @/vault, password: {{ file: @/pw }} }} }}\ndatabases:\n  app: {{ engine: \
         rds-postgres, name: postgres, user: postgres, instances: {{ east: {{ host: 127.0.0.1, port: {} }} }} }}\n",
        cluster.port
    );
    place
        .file("muster.yaml", &estate)
        .book("  - id: copy\n    uses: database.backup\n    with: { database: app, region: east, repository: vault }\n");
    let said = place.muster(&["run", "book.yaml", "--live"]).expect(0);
    let step = said.step("copy");
    assert_eq!(step["status"], "succeeded", "{step}");
    let listed = backup(&place, &["list"]).expect(0).last();
    let snapshots = listed["snapshots"].as_array().unwrap();
    assert_eq!((snapshots.len(), snapshots[0]["source"].as_str().unwrap().contains("127.0.0.1")), (1, true), "{listed}");
}
