//! What `pg_waldump` says, read: the transactions that were committed, what each did to which table, and where the log
//! ends. Pure; the text is a line a record.
//!
//! PostgreSQL 16 words it otherwise than 15 (`off: 2` for `off 2`, `ntuples: 2` for `2 tuples`), and a version to come may
//! again. So what is not understood is kept, and nobody takes it for a row at place 0.

use crate::providers::port::Lsn;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A table's file: database and file number, as the log names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct File {
    pub database: u32,
    pub number: u32,
}

/// What a transaction did to one file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub inserted: u64,
    pub updated: u64,
    /// Where the rows stood that it deleted.
    pub deleted: Vec<(u32, u32)>,
    /// Where its rows stand.
    pub blocks: BTreeSet<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub xid: u32,
    /// Its subtransactions: rows bear their number as well.
    pub parts: Vec<u32>,
    /// As the old primary's clock had it.
    pub at: String,
    pub lsn: Lsn,
    pub files: BTreeMap<File, Done>,
    /// Relations that it had for itself alone: database and number in the catalog.
    pub alone: BTreeSet<(u32, u32)>,
}

#[derive(Debug, Default)]
pub(crate) struct Log {
    pub committed: Vec<Transaction>,
    /// Records of whatever kind.
    pub records: u64,
    /// Where the last record begins.
    pub last: Option<Lsn>,
    /// The first record of a row that this does not understand: then nobody can say what was done.
    pub strange: Option<String>,
    open: HashMap<u32, BTreeMap<File, Done>>,
    alone: HashMap<u32, BTreeSet<(u32, u32)>>,
}

fn after<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.split_once(word).map(|(_, rest)| rest)
}

fn number(text: &str) -> Option<u32> {
    let digits: &str = text.trim_start();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits.get(..end)?.parse().ok()
}

/// The blocks of tables that a record names, the first one's first; forks other than the main one are left out.
fn blocks(line: &str) -> Vec<(File, u32)> {
    let mut found = Vec::new();
    for part in line.split("blkref #").skip(1) {
        let Some(place) = after(part, "rel ") else { continue };
        let mut words = place.split_whitespace();
        let (path, word, block) = (words.next().unwrap_or_default(), words.next(), words.next());
        if word != Some("blk") {
            continue;
        }
        let numbers: Vec<Option<u32>> = path.split('/').map(number).collect();
        if let ([_, Some(database), Some(file)], Some(block)) = (numbers.as_slice(), block.and_then(number)) {
            found.push((File { database: *database, number: *file }, block));
        }
    }
    found
}

/// `DELETE off 2 flags 0x00 …`, or `DELETE xmax: 728, off: 2, infobits: …`.
fn offset(what: &str) -> Option<u32> {
    after(what, " off").map(|rest| rest.trim_start_matches(':')).and_then(number)
}

/// `MULTI_INSERT+INIT 2 tuples flags 0x02`, or `MULTI_INSERT+INIT ntuples: 2, flags: 0x02`.
fn tuples(what: &str) -> Option<u64> {
    let rest = after(what, " ")?;
    number(rest.strip_prefix("ntuples: ").unwrap_or(rest)).map(u64::from)
}

impl Log {
    pub(crate) fn read(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("rmgr: ") else { return };
        let manager = rest.split_whitespace().next().unwrap_or_default();
        let xid = after(line, ", tx:").and_then(number);
        let lsn = after(line, ", lsn: ").and_then(|t| t.split(',').next()).and_then(|t| t.trim().parse::<Lsn>().ok());
        let (Some(xid), Some(lsn), Some(what)) = (xid, lsn, after(line, ", desc: ")) else { return };
        self.records += 1;
        self.last = Some(lsn);
        match manager {
            "Heap" | "Heap2" => self.row(xid, what),
            "Transaction" => self.ended(xid, lsn, what),
            "Standby" => self.locked(what),
            _ => {}
        }
    }

    fn row(&mut self, xid: u32, what: &str) {
        let kind = what.split([' ', '+']).next().unwrap_or_default();
        if !matches!(kind, "INSERT" | "MULTI_INSERT" | "UPDATE" | "HOT_UPDATE" | "DELETE") {
            return;
        }
        let places = blocks(what);
        let (first, at, many) = (places.first().copied(), offset(what), tuples(what));
        let (Some((file, block)), true, true) = (first, kind != "DELETE" || at.is_some(), kind != "MULTI_INSERT" || many.is_some()) else {
            self.strange.get_or_insert_with(|| what.to_owned());
            return;
        };
        let done = self.open.entry(xid).or_default().entry(file).or_default();
        match (kind, at) {
            ("DELETE", Some(offset)) => done.deleted.push((block, offset)),
            ("INSERT", _) => done.inserted += 1,
            ("MULTI_INSERT", _) => done.inserted += many.unwrap_or_default(),
            _ => done.updated += 1,
        }
        if kind != "DELETE" {
            done.blocks.extend(places.iter().map(|(_, block)| *block));
        }
    }

    /// `LOCK xid 740 db 5 rel 16384 xid 740 db 5 rel 16390`: locks that no standby may read past.
    fn locked(&mut self, what: &str) {
        let Some(list) = what.strip_prefix("LOCK ") else { return };
        for lock in list.split("xid ").skip(1) {
            let of = |word| after(lock, word).and_then(number);
            if let (Some(xid), Some(database), Some(relation)) = (number(lock), of(" db "), of(" rel ")) {
                self.alone.entry(xid).or_default().insert((database, relation));
            }
        }
    }

    fn ended(&mut self, xid: u32, lsn: Lsn, what: &str) {
        let (kind, rest) = what.split_once(' ').unwrap_or((what, ""));
        let numbers = |word: &str| -> Vec<u32> {
            let list = after(what, word).map(|t| t.split(';').next().unwrap_or_default());
            list.map(|t| t.split_whitespace().filter_map(|w| w.parse().ok()).collect()).unwrap_or_default()
        };
        let (xid, at) = match kind {
            "COMMIT" => (xid, rest),
            // `COMMIT_PREPARED 740: 2026-…`
            "COMMIT_PREPARED" => match rest.split_once(": ") {
                Some((prepared, at)) => (number(prepared).unwrap_or(xid), at),
                None => (xid, rest),
            },
            "ABORT" | "ABORT_PREPARED" => {
                self.open.remove(&xid);
                self.alone.remove(&xid);
                return;
            }
            _ => return,
        };
        let parts = numbers("subxacts:");
        let mut files: BTreeMap<File, Done> = BTreeMap::new();
        let mut alone = BTreeSet::new();
        for one in std::iter::once(xid).chain(parts.iter().copied()) {
            alone.extend(self.alone.remove(&one).unwrap_or_default());
            for (file, done) in self.open.remove(&one).unwrap_or_default() {
                let all = files.entry(file).or_default();
                all.inserted += done.inserted;
                all.updated += done.updated;
                all.deleted.extend(done.deleted);
                all.blocks.extend(done.blocks);
            }
        }
        let at = at.split(';').next().unwrap_or_default().trim().to_owned();
        self.committed.push(Transaction { xid, parts, at, lsn, files, alone });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PostgreSQL 15 writes them.
    const DUMP: &str = "\
rmgr: Heap        len (rec/tot):     61/    61, tx:        726, lsn: 0/017724B8, prev 0/01772490, desc: INSERT off 4 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     61/    61, tx:        727, lsn: 0/01772538, prev 0/017724F8, desc: INSERT+INIT off 1 flags 0x00, blkref #0: rel 1663/5/16384 blk 7
rmgr: Heap        len (rec/tot):     69/    69, tx:        727, lsn: 0/017725B8, prev 0/01772578, desc: HOT_UPDATE off 1 xmax 727 flags 0x20 ; new off 6 xmax 0, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     46/    46, tx:        726, lsn: 0/01772600, prev 0/017725B8, desc: COMMIT 2026-11-26 17:35:34.979508 UTC; subxacts: 727; inval msgs: catcache 5
rmgr: Heap        len (rec/tot):     54/    54, tx:        728, lsn: 0/01772630, prev 0/01772600, desc: DELETE off 2 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16384 blk 3
rmgr: Transaction len (rec/tot):     34/    34, tx:        728, lsn: 0/01772668, prev 0/01772630, desc: COMMIT 2026-11-26 17:35:34.979843 UTC
rmgr: Heap        len (rec/tot):     62/    62, tx:        729, lsn: 0/01772690, prev 0/01772668, desc: INSERT off 7 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        729, lsn: 0/01772710, prev 0/017726D0, desc: ABORT 2026-11-26 17:35:34.980007 UTC
rmgr: Heap2       len (rec/tot):     82/    82, tx:        731, lsn: 0/01772958, prev 0/017728E0, desc: MULTI_INSERT 2 tuples flags 0x02, blkref #0: rel 1663/5/16384 blk 1
rmgr: Heap2       len (rec/tot):     59/  8243, tx:          0, lsn: 0/01772960, prev 0/017728E0, desc: VISIBLE cutoff xid 0 flags 0x03, blkref #0: rel 1663/5/16384 fork vm blk 0 FPW, blkref #1: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        731, lsn: 0/01772A30, prev 0/017729F0, desc: COMMIT 2026-11-26 17:35:34.980725 UTC
rmgr: Heap        len (rec/tot):     64/    64, tx:        732, lsn: 0/01772A58, prev 0/01772A30, desc: INSERT off 10 flags 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: XLOG        len (rec/tot):     24/    24, tx:        732, lsn: 0/01772AD8, prev 0/01772A98, desc: SWITCH
";

    /// The same as PostgreSQL 18 writes it; 16 and 17 do, too.
    const DUMP_18: &str = "\
rmgr: Heap        len (rec/tot):     61/    61, tx:        726, lsn: 0/017724B8, prev 0/01772490, desc: INSERT off: 4, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Heap        len (rec/tot):     61/    61, tx:        727, lsn: 0/01772538, prev 0/017724F8, desc: INSERT+INIT off: 1, flags: 0x00, blkref #0: rel 1663/5/16384 blk 7
rmgr: Heap        len (rec/tot):     69/    69, tx:        727, lsn: 0/017725B8, prev 0/01772578, desc: HOT_UPDATE old_xmax: 727, old_off: 1, old_infobits: [], flags: 0x20, new_xmax: 0, new_off: 6, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     46/    46, tx:        726, lsn: 0/01772600, prev 0/017725B8, desc: COMMIT 2026-11-26 17:35:34.979508 UTC; subxacts: 727; inval msgs: catcache 5
rmgr: Heap        len (rec/tot):     54/    54, tx:        728, lsn: 0/01772630, prev 0/01772600, desc: DELETE xmax: 728, off: 2, infobits: [KEYS_UPDATED], flags: 0x00, blkref #0: rel 1663/5/16384 blk 3
rmgr: Transaction len (rec/tot):     34/    34, tx:        728, lsn: 0/01772668, prev 0/01772630, desc: COMMIT 2026-11-26 17:35:34.979843 UTC
rmgr: Heap        len (rec/tot):     62/    62, tx:        729, lsn: 0/01772690, prev 0/01772668, desc: INSERT off: 7, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        729, lsn: 0/01772710, prev 0/017726D0, desc: ABORT 2026-11-26 17:35:34.980007 UTC
rmgr: Heap2       len (rec/tot):     82/    82, tx:        731, lsn: 0/01772958, prev 0/017728E0, desc: MULTI_INSERT+INIT ntuples: 2, flags: 0x02, blkref #0: rel 1663/5/16384 blk 1
rmgr: Heap2       len (rec/tot):     59/  8243, tx:          0, lsn: 0/01772960, prev 0/017728E0, desc: VISIBLE snapshotConflictHorizon: 0, flags: 0x03, blkref #0: rel 1663/5/16384 fork vm blk 0 FPW, blkref #1: rel 1663/5/16384 blk 0
rmgr: Transaction len (rec/tot):     34/    34, tx:        731, lsn: 0/01772A30, prev 0/017729F0, desc: COMMIT 2026-11-26 17:35:34.980725 UTC
rmgr: Heap        len (rec/tot):     64/    64, tx:        732, lsn: 0/01772A58, prev 0/01772A30, desc: INSERT off: 10, flags: 0x00, blkref #0: rel 1663/5/16384 blk 0
rmgr: XLOG        len (rec/tot):     24/    24, tx:        732, lsn: 0/01772AD8, prev 0/01772A98, desc: SWITCH
";

    #[test]
    fn what_was_committed_is_told_with_all_that_it_did() {
        for dump in [DUMP, DUMP_18] {
            let mut log = Log::default();
            dump.lines().for_each(|line| log.read(line));
            let table = File { database: 5, number: 16384 };
            assert_eq!(log.committed.iter().map(|t| t.xid).collect::<Vec<_>>(), [726, 728, 731], "neither aborted nor open ones");
            let first = &log.committed[0];
            assert_eq!((first.parts.as_slice(), first.at.as_str()), ([727].as_slice(), "2026-11-26 17:35:34.979508 UTC"));
            let done = &first.files[&table];
            assert_eq!((done.inserted, done.updated, done.blocks.iter().copied().collect::<Vec<_>>()), (2, 1, vec![0, 7]));
            assert_eq!(log.committed[1].files[&table].deleted, [(3, 2)]);
            assert_eq!(log.committed[2].files[&table].inserted, 2);
            assert_eq!((log.records, log.last, log.strange), (13, Some(Lsn(0x0177_2AD8)), None));
        }
    }

    #[test]
    fn what_is_not_understood_is_never_place_0_nor_one_row() {
        let line = |what: &str| format!("rmgr: Heap2 len (rec/tot): 54/ 54, tx: 728, lsn: 0/01772630, prev 0/01772600, desc: {what}");
        for what in [
            "DELETE at 2, blkref #0: rel 1663/5/16384 blk 3",
            "MULTI_INSERT of many, blkref #0: rel 1663/5/16384 blk 3",
            "INSERT off: 1, flags: 0x00",
        ] {
            let mut log = Log::default();
            log.read(&line(what));
            log.read(&line("LOCK what: ever"));
            assert_eq!(log.strange.as_deref(), Some(what));
            log.read("rmgr: Transaction len (rec/tot): 34/ 34, tx: 728, lsn: 0/01772668, prev 0/01772630, desc: COMMIT 2026-11-26 17:35:34.979843 UTC");
            assert!(log.committed[0].files.is_empty(), "{what}");
        }
    }

    #[test]
    fn what_a_transaction_had_for_itself_alone_is_told() {
        let mut log = Log::default();
        for line in [
            "rmgr: Standby     len (rec/tot):     54/    54, tx:        740, lsn: 0/01772600, prev 0/017725B8, desc: LOCK xid 740 db 5 rel 16384 xid 741 db 5 rel 16390 ",
            "rmgr: Standby     len (rec/tot):     42/    42, tx:        742, lsn: 0/01772638, prev 0/01772600, desc: LOCK xid 742 db 5 rel 16400 ",
            "rmgr: Standby     len (rec/tot):     50/    50, tx:          0, lsn: 0/01772660, prev 0/01772638, desc: RUNNING_XACTS nextXid 743 latestCompletedXid 739 oldestRunningXid 740",
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        742, lsn: 0/01772690, prev 0/01772660, desc: ABORT 2026-11-26 17:35:34.980007 UTC",
            "rmgr: Transaction len (rec/tot):     46/    46, tx:        740, lsn: 0/017726B8, prev 0/01772690, desc: COMMIT 2026-11-26 17:35:34.979508 UTC; subxacts: 741",
        ] {
            log.read(line);
        }
        assert_eq!(log.committed.iter().map(|one| one.alone.clone()).collect::<Vec<_>>(), [[(5, 16384), (5, 16390)].into()]);
    }

    #[test]
    fn nonsense_is_passed_over() {
        let mut log = Log::default();
        for line in [
            "",
            "pg_waldump: error",
            "rmgr: Heap",
            "rmgr: Heap tx: , lsn: , desc: ",
            "rmgr: Transaction len, tx: 1, lsn: 0/1, desc: COMMIT",
        ] {
            log.read(line);
        }
        assert_eq!(log.committed.len(), 1);
    }
}
