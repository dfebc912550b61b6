//! The repository's disk fills up under a base backup: there is no backup, what is there stays whole, and with more room the
//! next one goes through. On a real small disk where one can be mounted; and everywhere by a library that lets the program
//! write no more than would fit, so that this is tried on every machine.

use crate::{
    disk::{in_a_room_of_its_own, said},
    pg::{Cluster, Home},
    place::Place,
};
use serde_json::Value;
use std::process::Command;

/// What is written below `FULL_DIR` is counted, and beyond `FULL_AT` bytes there is no space left.
const FULL: &str = "#define _GNU_SOURCE\n#include <errno.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\
     #include <sys/syscall.h>\n#include <sys/uio.h>\n#include <unistd.h>\n\
     static long used;\n\
     static int full(int fd, size_t n) { char link[64], path[4096]; const char *dir = getenv(\"FULL_DIR\"), *at = getenv(\"FULL_AT\"); if (!dir || !at) return 0;\n\
       snprintf(link, sizeof link, \"/proc/self/fd/%d\", fd); ssize_t length = readlink(link, path, sizeof path - 1); if (length < 0) return 0; path[length] = 0;\n\
       if (strncmp(path, dir, strlen(dir))) return 0; return __sync_add_and_fetch(&used, (long)n) > atol(at); }\n\
     ssize_t write(int fd, const void *b, size_t n) { if (full(fd, n)) { errno = ENOSPC; return -1; } return syscall(SYS_write, fd, b, n); }\n\
     ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { if (full(fd, n)) { errno = ENOSPC; return -1; } return syscall(SYS_pwrite64, fd, b, n, o); }\n\
     ssize_t writev(int fd, const struct iovec *v, int c) { size_t n = 0; for (int i = 0; i < c; i++) n += v[i].iov_len; if (full(fd, n)) { errno = ENOSPC; return -1; } return syscall(SYS_writev, fd, v, c); }\n";

fn a_base_backup_without_room(real: bool) {
    let home = Home::new();
    let cluster = Cluster::with(&home, "fsync=off\nmax_wal_senders=6\nautovacuum=off\n");
    cluster
        .sql("CREATE TABLE noise AS SELECT string_agg(md5(random()::text), '') AS text FROM generate_series(1, 800000) g GROUP BY g / 50");
    let place = Place::new();
    place.file("pw", "tide-and-ebb\n");
    let url = cluster.url("");
    let (small, large, limit) = if real {
        ("mount -t tmpfs -o size=12m tmpfs @/vault", "mount -o remount,size=400m @/vault", "")
    } else {
        place.file("full.c", FULL);
        let (source, library) = (place.path("full.c"), place.path("full.so"));
        assert!(Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap().success());
        (":", ":", "export LD_PRELOAD=@/full.so FULL_DIR=@/vault FULL_AT=12000000;")
    };
    let script = format!(
        "said() {{ n=$1; shift; \"$MUSTER\" --json \"$@\" --repo @/vault --password-file @/pw > @/out$n 2> @/err$n && echo 0 > @/code$n || echo $? > @/code$n; }}
mkdir @/vault
{small}
( {limit} said 1 backup create {url} )
said 2 backup list
said 3 backup verify --read-data
{large}
said 4 backup create {url}
said 5 backup verify --read-data
said 6 backup list\n"
    );
    if !real {
        std::fs::write(place.path("script.sh"), script.replace("@/", &format!("{}/", place.root().display()))).unwrap();
        let mut command = Command::new("sh");
        command.args(["-eu", "script.sh"]).current_dir(place.root()).env("MUSTER", env!("CARGO_BIN_EXE_muster"));
        command.env_remove("MUSTER_STATE").env_remove("MUSTER_ESTATE");
        place.spawn(command).end().expect(0);
    } else if !in_a_room_of_its_own(&place, &script) {
        // Said by it; the other way is tried all the same.
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

#[test]
fn a_disk_that_fills_up_under_a_base_backup_leaves_no_half_of_one() {
    a_base_backup_without_room(false);
}

#[test]
fn a_small_disk_that_fills_up_under_a_base_backup_leaves_no_half_of_one() {
    a_base_backup_without_room(true);
}
