//! `muster replica verify` on rows: what differs between a standby and its primary is found, and nothing else is.

use crate::pg::{Cluster, Home, Programs};
use crate::pg_replica::*;
use serde_json::Value;
use std::{
    io::{BufRead, BufReader},
    os::unix::fs::FileExt,
    process::Stdio,
};

/// Every kind of column that a checksum has a way of its own for, and some that it has none for.
const WIDE: &str = "
CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN small AS int CHECK (VALUE < 1000000);
CREATE TABLE wide (id bigint, k text, a smallint, b int, c bigint, d real, e float8, f numeric, g text, h varchar(40), i char(8), j timestamptz,
  k2 timestamp, l date, m time, n interval, o uuid, p bytea, q jsonb, r json, s int[], t boolean, u inet, v mood, w small, x oid, y point, z xml,
  PRIMARY KEY (id, k));
INSERT INTO wide SELECT g, 'k' || g, g % 100, g, g::bigint << 20, g / 7.0, g / 3.0, g * 1.10, 'text ' || g, 'v' || g, 'c' || g % 10, now() - g * interval '1 h',
  now() - g * interval '1 h', current_date - g, '12:00'::time, g * interval '1 s', gen_random_uuid(), decode(md5(g::text), 'hex'), jsonb_build_object('a', g),
  json_build_object('b', g), ARRAY[g, g + 1], g % 2 = 0, '10.0.0.1', 'glad', g, g, point(g, g), xmlparse(content '<a/>') FROM generate_series(1, 2000) g;
INSERT INTO wide (id, k) SELECT g, 'null' FROM generate_series(2001, 2100) g;
INSERT INTO wide (id, k, j, d, e, f) VALUES (0, 'edge', 'infinity', '-0', 'NaN', 'NaN'), (-1, 'edge', '0044-03-15 BC', 'infinity', '-0', '1.00');
CREATE TABLE \"Odd Name\" (\"Col\"\"umn\" text, muster_row int); INSERT INTO \"Odd Name\" SELECT 'x' || g, g FROM generate_series(1, 500) g;
CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000);
INSERT INTO parts SELECT g, 'p' || g FROM generate_series(0, 999) g; CREATE TABLE nothing (id int); CREATE UNLOGGED TABLE scratch (n int);
CREATE SEQUENCE numbers; SELECT nextval('numbers') FROM generate_series(1, 100);
CREATE TABLE busy (id bigserial PRIMARY KEY, n int NOT NULL DEFAULT 0, pad text DEFAULT repeat('x', 100)); INSERT INTO busy (n) SELECT g FROM generate_series(1, 20000) g";

/// Adds, changes and removes rows, and now and then cleans up, which is what conflicts with queries on a standby.
pub const BUSY: &str = "\\set id random(1, 20000)\n\\set what random(1, 200)\nINSERT INTO busy (n) VALUES (:what);\nUPDATE busy SET n = n + 1 WHERE id = :id;\n\
                        DELETE FROM busy WHERE id = (SELECT max(id) FROM busy WHERE id > 20000 AND id < 20000 + :id);\n\
                        \\if :what = 1\nVACUUM busy;\n\\endif\n";

fn table<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let all = answer["tables"].as_array().unwrap_or_else(|| panic!("{answer}"));
    all.iter().find(|t| t["table"] == name).unwrap_or_else(|| panic!("no {name} in {answer}"))
}

fn under_load(programs: Programs) {
    let home = Home::new();
    let east = Cluster::of(&home, programs, "max_connections=30\nfsync=off\nautovacuum_naptime=1s\n");
    east.sql(READER);
    // The one of the wheel was built without XML.
    let wide = if programs == Programs::Eighteen {
        WIDE.replace("z xml", "z text").replace("xmlparse(content '<a/>')", "'a'")
    } else {
        WIDE.to_owned()
    };
    east.sql(&wide);
    // Queries that stand in the way of replay are ended at once.
    let west = east.standby_named(&home, "west", "max_standby_streaming_delay=0\n", &[]);
    in_step(&east, &west);
    let mut load = Load::begin(&east, &home, "150", BUSY);
    for args in [&["--max-load", "100"][..], &["--max-load", "30"], &["--max-load", "100", "--table", "busy", "--table", "parts"]] {
        let (code, answer) = verify(&east, &west, &home, args);
        assert_eq!((code, &answer["verdict"]), (0, &"good".into()), "{answer}");
        assert!(table(&answer, "public.busy")["rows"].as_u64().unwrap() >= 19_000, "{answer}");
        assert_eq!(table(&answer, "public.parts_1")["rows"], 1000);
        if args.len() == 2 {
            assert_eq!(table(&answer, "public.wide")["rows"], 2102);
            assert_eq!(table(&answer, "public.\"Odd Name\"")["rows"], 500);
            assert_eq!(table(&answer, "public.nothing")["state"], "equal");
            assert_eq!(table(&answer, "public.scratch")["state"], "not_replicated");
            assert!(!answer["structure"].as_array().unwrap().iter().any(|d| d["bad"] == true), "{answer}");
        }
    }
    assert!(load.goes_on(), "nothing was written meanwhile");
    drop(load);
    in_step(&east, &west);
    // Nothing is left of it on either.
    for cluster in [&east, &west] {
        eventually("its sessions have ended", || {
            cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'muster'") == "0"
        });
    }
    assert_eq!(west.sql("SELECT pg_is_wal_replay_paused()"), "f");
    // A role without the rights is told which.
    east.sql("CREATE ROLE clerk LOGIN");
    in_step(&east, &west);
    let (code, answer) = verify_as("clerk", &east, &west, &home, &["--state-only"]);
    assert_eq!((code, answer["replica"]["cause"].as_str().unwrap()), (1, "not_told"), "{answer}");
    east.sql("GRANT pg_monitor TO clerk");
    in_step(&east, &west);
    let (code, answer) = verify_as("clerk", &east, &west, &home, &["--table", "busy"]);
    assert_eq!((code, table(&answer, "public.busy")["state"].as_str().unwrap()), (1, "unknown"), "{answer}");
    assert!(table(&answer, "public.busy")["why"].as_str().unwrap().contains("pg_read_all_data"), "{answer}");
}

#[test]
fn rows_that_are_being_written_are_no_difference() {
    under_load(Programs::Debian);
}

#[test]
fn rows_that_are_being_written_are_no_difference_in_18() {
    under_load(Programs::Eighteen);
}

/// A page of a table's file, of a server that does not run.
pub struct Page {
    file: std::fs::File,
    at: u64,
    pub bytes: Vec<u8>,
}

impl Page {
    pub fn read(cluster: &Cluster, path: &str, block: u64) -> Self {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(cluster.data().join(path)).unwrap();
        let mut bytes = vec![0; 8192];
        file.read_exact_at(&mut bytes, block * 8192).unwrap();
        Self { file, at: block * 8192, bytes }
    }
    pub fn write(self) {
        self.file.write_all_at(&self.bytes, self.at).unwrap();
        self.file.sync_all().unwrap();
    }
    /// Other text of the same length, in the first row that has it.
    pub fn replace(&mut self, old: &str, new: &str) {
        assert_eq!(old.len(), new.len());
        let at = self.bytes.windows(old.len()).position(|w| w == old.as_bytes()).unwrap_or_else(|| panic!("{old} is not on the page"));
        self.bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
    }
    /// As if no row had ever been there.
    pub fn remove(&mut self, line: usize) {
        let at = 24 + 4 * (line - 1);
        assert_ne!(self.bytes[at..at + 4], [0; 4]);
        self.bytes[at..at + 4].fill(0);
    }
}

/// Where a row is: block and line.
pub fn place(cluster: &Cluster, table: &str, condition: &str) -> (u64, usize) {
    let text = cluster.sql(&format!("SELECT ctid FROM {table} WHERE {condition}"));
    let (block, line) = text.trim_matches(['(', ')']).split_once(',').unwrap();
    (block.parse().unwrap(), line.parse().unwrap())
}

/// Everything is in the files, on both, and the standby has no log left that would mend them.
pub fn settled(primary: &Cluster, standby: &Cluster) {
    primary.sql("CHECKPOINT");
    in_step(primary, standby);
    standby.sql("CHECKPOINT");
}

fn planted(programs: Programs) {
    let home = Home::new();
    let without = programs.without_checksums();
    let east = Cluster::named(&home, "east", programs, "max_connections=20\nfsync=off\nautovacuum=off\n", without);
    east.sql(READER);
    east.sql("CREATE TABLE rows (id int PRIMARY KEY, name text, n bigint); INSERT INTO rows SELECT g, 'name-' || lpad(g::text, 6, '0'), g FROM generate_series(1, 30000) g");
    east.sql("CREATE TABLE other (id int, t text); INSERT INTO other SELECT g, 'o' || g FROM generate_series(1, 1000) g");
    east.sql("VACUUM FREEZE rows");
    let west = east.standby(&home);
    settled(&east, &west);
    let path = east.sql("SELECT pg_relation_filepath('rows')");
    let [changed, missing, extra] = [7_777, 20_001, 30_000].map(|id| place(&east, "rows", &format!("id = {id}")));
    east.shut_down();
    west.shut_down();
    let mut page = Page::read(&west, &path, changed.0);
    page.replace("name-007777", "name-007778");
    page.write();
    let mut page = Page::read(&west, &path, missing.0);
    page.remove(missing.1);
    page.write();
    let mut page = Page::read(&east, &path, extra.0);
    page.remove(extra.1);
    page.write();
    east.start_again();
    west.start_again();
    in_step(&east, &west);
    let (code, answer) = verify(&east, &west, &home, &["--max-load", "100"]);
    assert_eq!((code, answer["verdict"].as_str().unwrap()), (1, "different"), "{answer}");
    assert_eq!(table(&answer, "public.other")["state"], "equal");
    let found: Vec<(String, String, String)> = table(&answer, "public.rows")["differences"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| (d["kind"].as_str().unwrap().to_owned(), d["key"]["id"].as_str().unwrap().to_owned(), d["columns"].to_string()))
        .collect();
    let row = |kind: &str, id: &str, columns: &str| (kind.to_owned(), id.to_owned(), columns.to_owned());
    let mut sorted = found.clone();
    sorted.sort();
    assert_eq!(sorted, [row("changed", "7777", "[\"name\"]"), row("extra", "30000", "[]"), row("missing", "20001", "[]")], "{answer}");
    // A list that ends is not the end of the count.
    let (_, answer) = verify(&east, &west, &home, &["--limit", "1", "--table", "rows"]);
    let rows = table(&answer, "public.rows");
    assert_eq!((rows["differences"].as_array().unwrap().len(), rows["more"].as_u64()), (1, Some(2)), "{answer}");
}

#[test]
fn every_planted_difference_is_found_with_its_key() {
    planted(Programs::Debian);
}

#[test]
fn every_planted_difference_is_found_with_its_key_in_18() {
    planted(Programs::Eighteen);
}

/// Values that PostgreSQL takes for equal, or hashes alike, and that are none the less not the same. The sum is asked for as the
/// server was asked for it, of rows that all stand at one place.
fn told_apart(programs: Programs) {
    let home = Home::new();
    let east = Cluster::of(&home, programs, "fsync=off\nlog_statement=all\n");
    east.sql(READER);
    east.sql(
        "CREATE TABLE f (a float8, b float8, n numeric, t timestamptz, u timestamptz);
         INSERT INTO f SELECT a::float8, b::float8, 1, '2020-01-01', '2020-01-01' FROM (VALUES ('0', '5.5'), ('5.5', '0'), ('0', '-0'),
           ('-0', '0'), ('0', '0'), ('-0', '-0'), (NULL, '0'), ('0', NULL), ('NaN', '0'), ('0', 'NaN')) AS v(a, b);
         INSERT INTO f SELECT 1, 1, n::numeric, '2020-01-01', '2020-01-01' FROM unnest(ARRAY['100.00', '-100.00', '100.0', '0', '0.00',
           'NaN', 'Infinity', '-Infinity', '10000', '0.0001']) AS n;
         INSERT INTO f SELECT 1, 1, 2, t::timestamptz, u::timestamptz FROM (VALUES ('epoch', '2021-01-01'), ('2021-01-01', 'epoch'),
           ('infinity', 'epoch'), ('epoch', 'infinity'), ('3000-01-01', 'epoch'), ('3000-01-01 00:00:00.000001', 'epoch')) AS v(t, u)",
    );
    let west = east.standby(&home);
    settled(&east, &west);
    let (code, answer) = verify(&east, &west, &home, &["--max-load", "100"]);
    assert_eq!((code, &answer["verdict"]), (0, &"good".into()), "{answer}");
    let log = std::fs::read_to_string(east.data().with_extension("log")).unwrap();
    let from = log.find("(SELECT hash").expect("the sum was asked for") + "(SELECT ".len();
    let asked = log[from..].split(" AS h FROM ONLY").next().unwrap().replace("muster_row.ctid", "'(0,1)'::tid");
    let counts =
        east.sql(&format!("SELECT count(*) || ' ' || count(DISTINCT h) FROM (SELECT {asked} AS h FROM f AS muster_row) AS all_of_them"));
    assert_eq!(counts, "26 26", "{asked}");
}

#[test]
fn what_is_equal_and_not_the_same_is_told_apart() {
    told_apart(Programs::Debian);
}

#[test]
fn what_is_equal_and_not_the_same_is_told_apart_in_18() {
    told_apart(Programs::Eighteen);
}

/// There a column may be NOT NULL and have nulls from before.
#[test]
fn rows_with_nulls_from_before_are_summed_in_18() {
    let home = Home::new();
    let east = Cluster::named(&home, "east", Programs::Eighteen, "fsync=off\nautovacuum=off\n", Programs::Eighteen.without_checksums());
    east.sql(READER);
    east.sql("CREATE TABLE rows (id int, name text); INSERT INTO rows VALUES (NULL, 'name-one'), (2, 'name-two')");
    east.sql("ALTER TABLE rows ADD CONSTRAINT later NOT NULL id NOT VALID");
    let west = east.standby(&home);
    settled(&east, &west);
    let path = east.sql("SELECT pg_relation_filepath('rows')");
    let (block, _) = place(&east, "rows", "id IS NULL");
    west.shut_down();
    let mut page = Page::read(&west, &path, block);
    page.replace("name-one", "name-eno");
    page.write();
    west.start_again();
    in_step(&east, &west);
    let (code, answer) = verify(&east, &west, &home, &["--max-load", "100"]);
    assert_eq!((code, &answer["verdict"]), (1, &"different".into()), "{answer}");
}

#[test]
fn a_page_that_is_damaged_is_named_and_the_rest_is_compared() {
    let home = Home::new();
    let east = Cluster::named(&home, "east", Programs::Debian, "max_connections=20\nfsync=off\nautovacuum=off\n", &["--data-checksums"]);
    east.sql(READER);
    east.sql("CREATE TABLE rows (id int PRIMARY KEY, name text); INSERT INTO rows SELECT g, 'name-' || g FROM generate_series(1, 30000) g");
    east.sql("VACUUM FREEZE rows");
    let west = east.standby(&home);
    settled(&east, &west);
    let (path, hurt) = (east.sql("SELECT pg_relation_filepath('rows')"), place(&east, "rows", "id = 15000").0);
    west.shut_down();
    let mut page = Page::read(&west, &path, hurt);
    page.replace("name-15000", "name-15001");
    page.write();
    west.start_again();
    in_step(&east, &west);
    let (code, answer) = verify(&east, &west, &home, &[]);
    assert_eq!(code, 1, "{answer}");
    let rows = table(&answer, "public.rows");
    let damage = rows["damage"].as_array().unwrap();
    assert_eq!((damage.len(), damage[0]["side"].as_str(), damage[0]["block"].as_u64()), (1, Some("standby"), Some(hurt)), "{answer}");
    assert!(damage[0]["message"].as_str().unwrap().contains("invalid page"), "{answer}");
    assert!(rows["rows"].as_u64().unwrap() > 20_000 && rows["differences"].is_null(), "{answer}");
}

/// Killed in the midst of it: nothing is left on the servers, and what was done need not be done again.
#[test]
fn a_verification_that_was_killed_is_gone_on_with() {
    let home = Home::new();
    let east = Cluster::primary(&home);
    east.sql(READER);
    for n in 0..12 {
        east.sql(&format!("CREATE TABLE t{n:02} (id int PRIMARY KEY); INSERT INTO t{n:02} SELECT generate_series(1, 20000)"));
    }
    let west = east.standby(&home);
    in_step(&east, &west);
    let refused = verify(&east, &west, &home, &["--resume"]);
    assert!(refused.0 == 2 && refused.1["error"]["message"].as_str().unwrap().contains("nothing to resume"), "{refused:?}");
    let mut child = command(&east, &west, "muster", &home).args(["--max-load", "5"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let done = lines.map(|line| line.unwrap()).filter(|line| line.starts_with("{\"table\"")).take(3).count();
    assert_eq!(done, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    for cluster in [&east, &west] {
        eventually("its sessions have ended", || {
            cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'muster'") == "0"
        });
        assert_eq!(cluster.sql("SELECT count(*) FROM pg_locks WHERE relation IS NOT NULL AND pid <> pg_backend_pid()"), "0");
    }
    let (code, answer) = verify(&east, &west, &home, &["--resume"]);
    assert_eq!((code, &answer["resumed"]), (0, &true.into()), "{answer}");
    let all = answer["tables"].as_array().unwrap();
    let resumed = all.iter().filter(|t| t["resumed"] == true).count();
    assert!(all.len() == 12 && (3..12).contains(&resumed) && all.iter().all(|t| t["rows"] == 20_000), "{answer}");
    let (code, answer) = verify(&east, &west, &home, &[]);
    assert_eq!((code, &answer["resumed"]), (0, &false.into()));
}
