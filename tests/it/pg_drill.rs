//! The restore drill with the shipped files, on a real server's base backup and log: it answers from the backup alone, its
//! checks find what is wrong, the proof is on record, and nothing is left behind.

use crate::{
    pg::Cluster,
    pg_vault::{Vault, archive_all, give, pgbench, said},
    place::Said,
};
use serde_json::Value;
use std::{fs, os::unix::fs::FileExt, path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CHECKED: &str = "runbook: checked
steps:
  - id: prove
    uses: database.prove
    on_failure: stop
    with:
      repository: vault
      checks:
        tables: [{ table: ledger, rows: 3 }, { table: pgbench_accounts, rows: 100000 }]
        sql:
          - { name: canary, sql: \"SELECT count(*) = 1 FROM canary WHERE id = 'planted'\" }
          - { name: newest, sql: \"SELECT max(n) FROM ledger\", expect: \"3\" }
";
const STARTED: &str = "runbook: started
steps:
  - { id: restore, uses: database.restore, with: { repository: vault, to: @/restored } }
";
const UNTIL: &str = "runbook: until
inputs: { until: { type: string }, to: { type: string } }
steps:
  - { id: restore, uses: database.restore, with: { repository: vault, to: \"{{ inputs.to }}\", until: \"{{ inputs.until }}\" } }
";

/// An estate beside the vault, with the shipped drill and runbook.
pub fn estate(vault: &Vault) {
    let dir = vault.dir();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        give(path.parent().unwrap());
        fs::write(&path, text.replace('@', dir.to_str().unwrap())).unwrap();
        give(&path);
    };
    write("pw", "tide\n");
    vault.muster(&["backup", "key", "add", "--new-password-file", "pw"]).expect(0);
    // Nobody answers as the database that the shipped runbook names, until `serves` says where it is.
    write("muster.yaml", &muster_yaml("east: { host: 127.0.0.1, port: 1 }", "postgres"));
    for name in ["drills/database-restore.yaml", "runbooks/database-restore.yaml"] {
        write(name, &fs::read_to_string(Path::new(ROOT).join(name)).unwrap());
    }
    write("runbooks/checked.yaml", CHECKED);
    write("runbooks/started.yaml", STARTED);
    write("runbooks/until.yaml", UNTIL);
}

fn muster_yaml(instances: &str, user: &str) -> String {
    format!(
        "regions: {{ east: {{}}, west: {{}} }}\nrepositories: {{ vault: {{ url: @/vault, password: {{ file: pw }} }} }}\n\
         databases: {{ predictions: {{ engine: postgres, name: postgres, user: {user}, instances: {{ {instances} }} }} }}\n"
    )
}

/// The estate is a repository alone.
pub fn without_database(vault: &Vault) {
    let file = vault.dir().join("muster.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("databases:")).collect();
    fs::write(&file, kept.join("\n") + "\n").unwrap();
}

/// These servers are the database from now on.
pub fn serves(vault: &Vault, servers: &[(&str, &Cluster)], user: &str) {
    let each: Vec<String> = servers.iter().map(|(region, one)| format!("{region}: {{ host: 127.0.0.1, port: {} }}", one.port)).collect();
    let text = muster_yaml(&each.join(", "), user).replace('@', vault.dir().to_str().unwrap());
    fs::write(vault.dir().join("muster.yaml"), text).unwrap();
}

pub fn muster(vault: &Vault, args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(args).arg("--json").current_dir(vault.dir()).env("HOME", vault.dir()).env_remove("MUSTER_REPO_PASSWORD");
    if let Some((uid, gid)) = crate::pg::other_user() {
        std::os::unix::process::CommandExt::uid(&mut command, uid);
        std::os::unix::process::CommandExt::gid(&mut command, gid);
    }
    said(command)
}

/// A server that was recovered from below this folder still lives, or its files do.
pub fn left(vault: &Vault) -> Vec<String> {
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("muster_restored") && line.contains(vault.dir().to_str().unwrap()) {
            left.push(line);
        }
    }
    let mut waiting = vec![vault.dir().join(".muster")];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            if entry.file_name().to_string_lossy().starts_with("muster-restored") {
                left.push(entry.path().display().to_string());
            } else if entry.path().is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    left
}

pub fn filled(vault: &Vault) -> Cluster {
    let cluster = vault.archiving_as(&["--data-checksums"], "track_commit_timestamp=on\n");
    cluster.sql("CREATE TABLE canary (id text primary key)");
    cluster.sql("INSERT INTO canary VALUES ('planted')");
    cluster.sql("CREATE TABLE ledger (n bigint primary key)");
    pgbench(&cluster, &["-i", "-s", "1", "-q"]);
    cluster
}

#[test]
fn the_shipped_drill_recovers_measures_and_leaves_nothing() {
    let vault = Vault::new();
    estate(&vault);
    let cluster = filled(&vault);
    let none = muster(&vault, &["drill", "run", "database-restore"]);
    assert_eq!((none.code, &none.last()["verdict"]), (Some(1), &"fail".into()), "{none:?}");
    vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (1), (2), (3)");
    archive_all(&cluster);

    let ran = muster(&vault, &["drill", "run", "database-restore"]);
    let view = ran.last();
    assert_eq!((ran.code, &view["verdict"]), (Some(0), &"pass".into()), "{view} {}", ran.err);
    let ms = |value: &Value| value.as_i64().unwrap_or_else(|| panic!("not measured: {view}"));
    println!("rto {} rpo {}", view["rto"], view["rpo"]);
    // Nobody answered as the primary: the loss is an age, and called no more than that.
    assert!(ms(&view["rto"]["actual_ms"]) > 0 && ms(&view["rpo"]["actual_ms"]) > 0 && view["rpo"]["upper_bound"] == true, "{view}");
    assert_eq!(left(&vault), Vec::<String>::new());
    // What is on record is what was found, and its point is that of the newest commit.
    let output = &view["steps"][0]["output"];
    assert!(output["segments"].as_u64().unwrap() >= 2, "{output}");
    let checks: Vec<_> = output["checks"].as_array().unwrap().iter().map(|c| (c["name"].as_str().unwrap(), c["ok"].as_bool())).collect();
    assert_eq!(checks, [("structure", Some(true)), ("pages", Some(true))], "{output}");
    let committed = cluster
        .sql("SELECT to_char(pg_xact_commit_timestamp(xmin) AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US') FROM ledger LIMIT 1");
    let recovered = view["restore"]["recovered_point"].as_str().unwrap();
    assert_eq!(recovered[..23], committed[..23], "{view}");

    let checked = muster(&vault, &["run", "checked", "--live"]);
    assert_eq!(checked.code, Some(0), "{} {}", checked.out, checked.err);
    assert_eq!(left(&vault), Vec::<String>::new());
    // A row that should be there and is not.
    cluster.sql("DELETE FROM canary");
    archive_all(&cluster);
    let failed = muster(&vault, &["run", "checked", "--live"]);
    assert!(failed.code == Some(1) && failed.out.contains("sql: canary: f"), "{} {}", failed.out, failed.err);
    assert_eq!(left(&vault), Vec::<String>::new());
    // A segment that is lost.
    cluster.sql("INSERT INTO canary VALUES ('planted')");
    let segment = archive_all(&cluster);
    let object = vault.log().into_iter().find(|path| path.ends_with(&segment)).unwrap();
    fs::remove_file(&object).unwrap();
    cluster.sql("INSERT INTO canary VALUES ('later')");
    archive_all(&cluster);
    let gap = muster(&vault, &["drill", "run", "database-restore"]);
    assert!(gap.code == Some(1) && gap.last().to_string().contains(&segment), "{} {}", gap.out, gap.err);
    assert_eq!(left(&vault), Vec::<String>::new());
}

/// What a copy cannot be opened without is there, and yet it is no good: each is planted alone, and named.
#[test]
fn a_damaged_page_and_a_damaged_index_make_the_proof_fail() {
    let vault = Vault::new();
    estate(&vault);
    let cluster = filled(&vault);
    vault.base_backup(&cluster);
    // What compares the keys of this index becomes another function, as a library that sorts otherwise would.
    let compared = |order: &str| {
        cluster.sql(&format!(
            "CREATE OR REPLACE FUNCTION compared(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT btint4cmp({order})'"
        ))
    };
    compared("$1, $2");
    cluster.sql(
        "CREATE OPERATOR CLASS fickle FOR TYPE int4 USING btree AS OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, \
         FUNCTION 1 compared(int, int)",
    );
    cluster.sql("CREATE TABLE rotten (n int, pad text) WITH (autovacuum_enabled = off)");
    cluster.sql("INSERT INTO rotten SELECT g, repeat('x', 200) FROM generate_series(1, 2000) g");
    cluster.sql("CREATE INDEX crooked ON rotten (n fickle)");
    archive_all(&cluster);
    let proved = || muster(&vault, &["drill", "run", "database-restore"]);
    let sound = proved();
    assert_eq!(sound.code, Some(0), "{} {}", sound.out, sound.err);
    compared("$2, $1");
    archive_all(&cluster);
    let crooked = proved();
    let words = ["structure: ", "item order invariant violated", "crooked"];
    assert!(crooked.code == Some(1) && words.iter().all(|word| crooked.out.contains(word)), "{} {}", crooked.out, crooked.err);
    assert!(!crooked.out.contains("pages: "), "{}", crooked.out);
    compared("$1, $2");
    cluster.sql("DROP INDEX crooked");

    // Bytes of a page change under the server; the base backup says so, and is kept. Nothing writes to that page afterwards.
    cluster.sql("VACUUM (FREEZE) rotten");
    cluster.sql("CHECKPOINT");
    let file = cluster.sql("SELECT pg_relation_filepath('rotten')");
    let on_disk = fs::OpenOptions::new().write(true).open(cluster.data.join(&file)).unwrap();
    on_disk.write_all_at(b"rot", 8192 * 41 + 5000).unwrap();
    let url = format!("postgres://postgres@127.0.0.1:{}/", cluster.port);
    let made = vault.muster(&["backup", "create", &url]).expect(1).last();
    assert_eq!(made["corrupt"], serde_json::json!([format!("{file} block 41")]));
    archive_all(&cluster);
    let rotten = proved();
    let words = ["pages: ", "checksum verification failed", "block 41"];
    assert!(rotten.code == Some(1) && words.iter().all(|word| rotten.out.contains(word)), "{} {}", rotten.out, rotten.err);
    assert_eq!(left(&vault), Vec::<String>::new());
}

/// Who restored to a point asks the server, and hears the rows of that point and no others; and the step says to which
/// position it came.
#[test]
fn a_server_restored_to_a_point_has_that_points_rows_and_says_where_it_is() {
    let vault = Vault::new();
    estate(&vault);
    let cluster = filled(&vault);
    vault.base_backup(&cluster);
    let at =
        "SELECT pg_current_wal_insert_lsn() || ' ' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let mut marks = Vec::new();
    for n in 1..=3 {
        cluster.sql(&format!("INSERT INTO ledger VALUES ({n})"));
        let (position, time) = cluster.sql(at).split_once(' ').map(|(p, t)| (p.to_owned(), t.to_owned())).unwrap();
        marks.push((position, time));
    }
    archive_all(&cluster);
    let ends: Vec<String> = marks.iter().map(|(position, _)| position.clone()).collect();
    for (name, until, rows) in [("position", &marks[0].0, 1), ("time", &marks[1].1, 2), ("latest", &"latest".to_owned(), 3)] {
        let to = vault.dir().join(name);
        let args = ["run", "until", "-i", &format!("until={until}"), "-i", &format!("to={}", to.display()), "--live"];
        let ran = muster(&vault, &args);
        assert_eq!(ran.code, Some(0), "{name}: {} {}", ran.out, ran.err);
        let output = ran.last()["steps"][0]["output"].clone();
        let asked = Command::new(cluster.bin.join("psql"))
            .args(["-h", output["socket"].as_str().unwrap(), "-p", &output["port"].to_string(), "-U", "postgres", "-wAtXc"])
            .arg("SELECT count(*) || ' ' || max(n) FROM ledger")
            .output()
            .unwrap();
        let pid = fs::read_to_string(to.join("postmaster.pid")).unwrap().lines().next().unwrap().to_owned();
        let _ = Command::new("kill").args(["-QUIT", &pid]).status().unwrap();
        crate::pg_vault::wait("its end", || !Path::new("/proc").join(&pid).exists());
        let _ = fs::remove_dir_all(output["socket"].as_str().unwrap());
        assert_eq!(String::from_utf8_lossy(&asked.stdout).trim(), format!("{rows} {rows}"), "{name}: {output}");
        // It has replayed what was written before the mark, and nothing of the next row.
        let position = output["position"].as_str().unwrap();
        let within = format!("SELECT '{position}'::pg_lsn >= '{}'::pg_lsn", ends[rows - 1]);
        assert_eq!(cluster.sql(&within), "t", "{name}: {output}, marks {ends:?}");
        if let Some(next) = ends.get(rows) {
            assert_eq!(cluster.sql(&format!("SELECT '{position}'::pg_lsn < '{next}'::pg_lsn")), "t", "{name}: {output}, marks {ends:?}");
        }
        assert_eq!(output["timeline"], 2, "{output}");
    }
}

#[test]
fn a_restored_server_answers_and_is_nobody_elses() {
    let vault = Vault::new();
    estate(&vault);
    let cluster = filled(&vault);
    vault.base_backup(&cluster);
    cluster.sql("INSERT INTO ledger VALUES (1), (2), (3)");
    archive_all(&cluster);
    let before = vault.log().len();
    let ran = muster(&vault, &["run", "started", "--live"]);
    assert_eq!(ran.code, Some(0), "{} {}", ran.out, ran.err);
    let pid = fs::read_to_string(vault.dir().join("restored/postmaster.pid")).unwrap();
    let mut lines = pid.lines();
    let (pid, port, socket) = (lines.next().unwrap().to_owned(), lines.nth(2).unwrap().to_owned(), lines.next().unwrap().to_owned());
    let ask = |host: &str, sql: &str| {
        let out = Command::new(cluster.bin.join("psql")).args(["-h", host, "-p", &port, "-U", "postgres", "-wAtXc", sql]).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    assert_eq!(ask(&socket, "SELECT count(*) FROM ledger"), (true, "3".to_owned()));
    assert_eq!(ask(&socket, "SHOW archive_mode").1, "off");
    assert_eq!(ask(&socket, "SHOW listen_addresses").1, "127.0.0.1");
    // Over TCP nobody is trusted.
    assert!(!ask("127.0.0.1", "SELECT 1").0);
    assert_eq!(vault.log().len(), before, "it archives");
    let _ = Command::new("kill").args(["-QUIT", &pid]).status().unwrap();
    crate::pg_vault::wait("its end", || !Path::new("/proc").join(&pid).exists());
    let _ = fs::remove_dir_all(socket);
}
