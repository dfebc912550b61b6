//! The machine of a PostgreSQL server of one's own, through commands ([`super::remote`]) whose text is fixed
//! ([`super::server_scripts`]). A tool that outlives Muster is seen by the next look, since it works in the data
//! directory.

use super::{
    port::*,
    postgres::Doing,
    remote::{Call, Remote, Said},
    server_scripts as script,
};
use crate::model::estate::Server;
use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};
use std::{path::Path, time::Duration};

const LOOK: Duration = Duration::from_secs(10);
const CHANGE: Duration = Duration::from_secs(30);
const START: Duration = Duration::from_secs(90);

pub struct Machine {
    remote: Remote,
    server: Server,
    host: String,
    port: u16,
}

impl Machine {
    #[must_use]
    pub fn new(label: String, server: Server, host: String, port: u16) -> Self {
        let remote = Remote { label, reach: server.reach.clone(), owned: server.data.clone() };
        Self { remote, server, host, port }
    }

    async fn script(&self, doing: Doing, limit: Duration, text: &str, args: &[&str], stdin: Option<Vec<u8>>) -> PortResult<Said> {
        self.script_into(doing, limit, text, args, stdin, None).await
    }

    async fn script_into(
        &self,
        doing: Doing,
        limit: Duration,
        text: &str,
        args: &[&str],
        stdin: Option<Vec<u8>>,
        into: Option<&Path>,
    ) -> PortResult<Said> {
        let (data, bin) = (self.server.data.display().to_string(), self.server.bin.as_ref().map(|b| b.display().to_string()));
        let mut argv = vec!["sh".to_owned(), "-c".to_owned(), format!("{}{text}", script::PRELUDE), "muster".to_owned(), data];
        argv.push(bin.unwrap_or_default());
        argv.extend(args.iter().map(|a| (*a).to_owned()));
        let said = self.remote.run(Call { argv, stdin, limit, doing, into }).await?;
        match said.code {
            96 | 97 => Err(PortError::NotFound(format!("{}: {}", self.remote.label, said.errors))),
            _ => Ok(said),
        }
    }

    /// A change that must end well.
    async fn change(&self, what: &str, limit: Duration, text: &str, args: &[&str], stdin: Option<Vec<u8>>) -> PortResult<Said> {
        let said = self.script(Doing::Writing, limit, text, args, stdin).await?;
        self.well(what, said)
    }

    fn well(&self, what: &str, said: Said) -> PortResult<Said> {
        if said.code == 0 {
            return Ok(said);
        }
        Err(PortError::Refused(format!("{}: {what} ended with {}: {}", self.remote.label, said.code, said.errors)))
    }

    /// A command of the estate.
    async fn own(&self, what: &str, argv: &[String], limit: Duration) -> PortResult<()> {
        let call = Call { argv: argv.to_vec(), stdin: None, limit, doing: Doing::Writing, into: None };
        let said = self.remote.run(call).await?;
        self.well(what, said).map(drop)
    }
}

fn password_line(source: &Upstream) -> Vec<u8> {
    let mut line = source.password.as_ref().map(|p| p.expose_secret().to_owned()).unwrap_or_default();
    line.push('\n');
    line.into_bytes()
}

/// As the scripts take them: three for each.
fn places(tablespaces: &[Tablespace]) -> Vec<String> {
    let shown = |path: &Path| path.display().to_string();
    let each = |one: &Tablespace| [shown(&one.from), shown(&one.to), one.or.as_deref().map(shown).unwrap_or_default()];
    tablespaces.iter().flat_map(each).collect()
}

/// A line of a server's configuration.
fn setting(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\\', r"\\").replace('\'', "''"))
}

/// A value in a connection string.
#[must_use]
pub fn conninfo_value(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

fn parse(text: &str) -> Result<MachineState, String> {
    let mut state = MachineState::default();
    let (mut seen, mut checksums, mut hints) = (false, false, false);
    for line in text.lines() {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "process" => {
                let (pid, name) = rest.split_once(' ').unwrap_or((rest, ""));
                let pid = pid.parse().map_err(|_| format!("`{line}` names no process"))?;
                state.processes.push(Standing { pid, name: name.to_owned() });
            }
            "attached" => state.attached = rest.trim().parse().map_err(|_| format!("`{line}` is no count"))?,
            "postmaster" => state.postmaster = true,
            "patroni" => state.patroni = true,
            "standby" => state.standby_signal = true,
            "beside" => state.beside = true,
            _ => {
                let (name, value) = line.split_once(':').unwrap_or((line, ""));
                let value = value.trim();
                match name {
                    "Database cluster state" => {
                        seen = true;
                        value.clone_into(&mut state.state);
                    }
                    "Database system identifier" => value.clone_into(&mut state.system_identifier),
                    "Latest checkpoint location" => state.checkpoint = value.parse()?,
                    "Latest checkpoint's TimeLineID" => state.timeline = value.parse().map_err(|_| format!("`{line}` is no timeline"))?,
                    "Data page checksum version" => checksums = value != "0",
                    "wal_log_hints setting" => hints = value == "on",
                    _ => {}
                }
            }
        }
    }
    state.rewindable = checksums || hints;
    if seen { Ok(state) } else { Err("pg_controldata said nothing".to_owned()) }
}

#[async_trait]
impl MachineRead for Machine {
    async fn look(&self) -> PortResult<MachineState> {
        let said = self.script(Doing::Reading, LOOK, script::LOOK, &[], None).await?;
        parse(&said.out).map_err(|e| PortError::Refused(format!("{}: {e} {}", self.remote.label, said.errors)))
    }

    async fn read(&self, file: &str) -> PortResult<Option<String>> {
        let said = self.script(Doing::Reading, LOOK, script::READ, &[file], None).await?;
        let said = self.well(&format!("reading {file}"), said)?;
        Ok(said.out.strip_prefix("yes\n").map(str::to_owned))
    }

    async fn no_room_for(&self, tablespaces: &[Tablespace]) -> PortResult<Vec<String>> {
        let places = places(tablespaces);
        let args: Vec<&str> = places.iter().map(String::as_str).collect();
        let said = self.script(Doing::Reading, LOOK, &script::no_room(), &args, None).await?;
        Ok(self.well("looking where tablespaces could go", said)?.out.lines().map(str::to_owned).collect())
    }

    async fn listens(&self) -> PortResult<bool> {
        let connecting = tokio::net::TcpStream::connect((self.host.as_str(), self.port));
        match tokio::time::timeout(Duration::from_secs(2), connecting).await {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(e)) if e.kind() == std::io::ErrorKind::ConnectionRefused => Ok(false),
            Ok(Err(e)) => Err(PortError::Unreachable(format!("{} ({}:{}): {e}", self.remote.label, self.host, self.port))),
            Err(_) => Err(PortError::Unreachable(format!("{} ({}:{}) does not answer", self.remote.label, self.host, self.port))),
        }
    }
}

#[async_trait]
impl MachineWrite for Machine {
    async fn write(&self, file: &str, content: &SecretString) -> PortResult<()> {
        let bytes = content.expose_secret().as_bytes().to_vec();
        self.change(&format!("writing {file}"), CHANGE, script::WRITE, &[file], Some(bytes)).await.map(drop)
    }

    async fn remove(&self, file: &str) -> PortResult<()> {
        self.change(&format!("removing {file}"), CHANGE, script::REMOVE, &[file], None).await.map(drop)
    }

    async fn make_standby(&self, conninfo: &SecretString, slot: &str) -> PortResult<()> {
        let lines = setting("primary_conninfo", conninfo.expose_secret()) + &setting("primary_slot_name", slot);
        self.change("making it a standby", CHANGE, script::MAKE_STANDBY, &[], Some(lines.into_bytes())).await.map(drop)
    }

    async fn start(&self) -> PortResult<()> {
        self.change("clearing a pid file", CHANGE, script::CLEAR, &[], None).await?;
        if self.server.start.is_empty() {
            self.change("pg_ctl start", START, script::START, &[], None).await.map(drop)
        } else {
            self.own("its start command", &self.server.start, START).await
        }
    }

    async fn stop(&self, how: Stop) -> PortResult<()> {
        if !self.server.stop.is_empty() {
            return self.own("its stop command", &self.server.stop, START).await;
        }
        let mode = if how == Stop::Fast { "fast" } else { "immediate" };
        // It fails where no postmaster lives; whether others do is for the look that follows.
        self.script(Doing::Writing, CHANGE, script::STOP, &[mode], None).await.map(drop)
    }

    async fn kill(&self) -> PortResult<()> {
        self.change("ending its processes", CHANGE, script::KILL, &[], None).await.map(drop)
    }

    async fn keep_configuration(&self) -> PortResult<()> {
        self.change("keeping its configuration", CHANGE, script::KEEP, &[], None).await.map(drop)
    }

    async fn restore_configuration(&self) -> PortResult<()> {
        self.change("putting its configuration back", CHANGE, script::RESTORE, &[], None).await.map(drop)
    }

    async fn rewind(&self, source: &Upstream, limit: Duration) -> PortResult<()> {
        let conninfo = format!(
            "host={} port={} user={} dbname={} connect_timeout=5",
            conninfo_value(&source.host),
            source.port,
            conninfo_value(&source.user),
            conninfo_value(&source.database)
        );
        self.change("pg_rewind", limit, script::REWIND, &[&conninfo], Some(password_line(source))).await.map(drop)
    }

    async fn copy(&self, source: &Upstream, kept: &str, tablespaces: &[Tablespace], limit: Duration) -> PortResult<String> {
        let port = source.port.to_string();
        let places = places(tablespaces);
        let args: Vec<&str> =
            [source.host.as_str(), &port, &source.user, kept].into_iter().chain(places.iter().map(String::as_str)).collect();
        let said = self.change("pg_basebackup", limit, &script::copy(), &args, Some(password_line(source))).await?;
        Ok(said.out.trim().to_owned())
    }

    async fn dump_log(&self, timeline: u32, from: Lsn, into: &Path, limit: Duration) -> PortResult<()> {
        let args = [&*timeline.to_string(), &from.to_string()];
        let said = self.script_into(Doing::Reading, limit, script::DUMP, &args, None, Some(into)).await?;
        self.well("pg_waldump", said).map(drop)
    }

    async fn isolate(&self, upto: Lsn, user: &str, limit: Duration) -> PortResult<()> {
        let seconds = limit.as_secs().max(1).to_string();
        self.change("starting it apart", limit * 2, script::ISOLATE, &[&upto.to_string(), user, &seconds], None).await.map(drop)
    }

    async fn isolated_no_more(&self) -> PortResult<()> {
        self.change("stopping it", START, script::ISOLATED_NO_MORE, &[], None).await.map(drop)
    }

    async fn ask(&self, database: &str, user: &str, sql: &str, into: &Path, limit: Duration) -> PortResult<()> {
        let input = Some(sql.as_bytes().to_vec());
        let said = self.script_into(Doing::Reading, limit, script::ASK, &[database, user], input, Some(into)).await?;
        self.well("psql", said).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_says_is_understood() {
        let text = "process 12 postgres\nattached 2\nstandby\nbeside\nDatabase cluster state:               shut down\n\
                    Database system identifier:           7412\nLatest checkpoint location:           0/3000028\n\
                    Latest checkpoint's TimeLineID:       2\nwal_log_hints setting:                on\n\
                    Data page checksum version:           0\n";
        let state = parse(text).unwrap();
        assert_eq!(state.processes, [Standing { pid: 12, name: "postgres".into() }]);
        assert!(state.standby_signal && state.beside && state.rewindable && !state.dead());
        assert_eq!((state.attached, state.timeline, state.checkpoint), (2, 2, Lsn(0x0300_0028)));
        assert_eq!(state.state, "shut down");
        assert!(parse("process 12 postgres\n").is_err(), "without its control file nothing is known of it");
    }

    #[tokio::test]
    async fn a_standbys_settings_take_the_place_of_what_stood_and_of_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        // What the script wants of a server's programs.
        let bin = dir.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::write(bin.join("pg_ctl"), "").unwrap();
        std::fs::set_permissions(bin.join("pg_ctl"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let auto = dir.path().join("postgresql.auto.conf");
        std::fs::write(&auto, "# ours\nwork_mem = '4MB'\nprimary_conninfo = 'host=a'\nprimary_conninfo_x = '1'\n").unwrap();
        let server = Server { data: dir.path().to_owned(), bin: Some(bin), ..Server::default() };
        let machine = Machine::new("orders in east".into(), server, "127.0.0.1".into(), 1);
        for _ in 0..2 {
            machine.make_standby(&SecretString::from(r"host='b' password='it\'s'"), "muster_east").await.unwrap();
            let want = r"# ours
work_mem = '4MB'
primary_conninfo_x = '1'
primary_conninfo = 'host=''b'' password=''it\\''s'''
primary_slot_name = 'muster_east'
";
            assert_eq!(std::fs::read_to_string(&auto).unwrap(), want);
            assert!(dir.path().join("standby.signal").exists());
        }
    }

    /// Keeps the words that it was called with, and fills its folders; then it fails, where a file says so.
    const BASEBACKUP: &str = r#"#!/bin/sh
echo "$@" > "$0.args"; new=$2
while [ $# -gt 0 ]; do
  if [ "$1" = -T ]; then to=$(echo "$2" | sed 's/.*[^\\]=//; s/\\=/=/g'); mkdir -p "$to" && echo new > "$to/PG_15"; fi
  shift
done
if [ -e "$0.fail" ]; then exit 1; fi
echo 15 > "$new/PG_VERSION"
"#;

    #[tokio::test]
    async fn the_tablespaces_of_a_copy_go_where_nothing_is_and_what_serves_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["bin", "data", "used"] {
            std::fs::create_dir(at(folder)).unwrap();
        }
        for (name, text) in [("pg_ctl", "#!/bin/sh\n"), ("pg_basebackup", BASEBACKUP)] {
            std::fs::write(at("bin").join(name), text).unwrap();
            std::fs::set_permissions(at("bin").join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::write(at("used/row"), "theirs").unwrap();
        let server = Server { data: at("data"), bin: Some(at("bin")), ..Server::default() };
        let machine = Machine::new("orders in east".into(), server, "127.0.0.1".into(), 1);
        let source = Upstream { host: "h".into(), port: 1, user: "u".into(), database: "d".into(), password: None };
        let place = |to: &str, or: Option<&str>| Tablespace { number: 1, from: "/p=q".into(), to: at(to), or: or.map(at) };
        let copy = async |all: &[Tablespace], kept: &str| machine.copy(&source, kept, all, Duration::from_secs(20)).await;

        // Somebody's rows are there, and there is no other place: nothing is begun.
        let full = [place("used", None)];
        assert!(machine.no_room_for(&full).await.unwrap()[0].contains("something is there already"));
        assert!(copy(&full, "a").await.unwrap_err().to_string().contains("something is there already"));
        assert!(at("data").exists() && !at("data.muster-new").exists() && !at("data.a").exists());
        // Cut off half-way: what it had filled is its own, and filled anew.
        let two = [place("t=1", None), place("used", Some("other"))];
        std::fs::write(at("bin/pg_basebackup.fail"), "").unwrap();
        copy(&two, "b").await.unwrap_err();
        assert!(at("data").exists() && at("t=1/PG_15").exists());
        std::fs::write(at("t=1/stale"), "").unwrap();
        assert_eq!(machine.no_room_for(&two).await.unwrap(), Vec::<String>::new());
        std::fs::remove_file(at("bin/pg_basebackup.fail")).unwrap();
        assert_eq!(copy(&two, "b").await.unwrap(), at("data.b").display().to_string());
        assert!(at("t=1/PG_15").exists() && !at("t=1/stale").exists() && at("other/PG_15").exists());
        let args = std::fs::read_to_string(at("bin/pg_basebackup.args")).unwrap();
        assert!(args.contains(&format!(r"-T /p\=q={}/t\=1", dir.path().display())), "{args}");
        // A record that somehow stayed is none of a copy that is done, and what serves by now is nobody's rest.
        std::fs::write(at("data.muster-places"), format!("{}\n", at("t=1").display())).unwrap();
        assert_eq!(machine.no_room_for(&[place("t=1", None)]).await.unwrap().len(), 1);
        copy(&[place("t=2", None)], "c").await.unwrap();
        assert!(at("t=1/PG_15").exists() && !at("data.muster-places").exists());
        assert_eq!(std::fs::read_to_string(at("used/row")).unwrap(), "theirs");
    }

    /// What comes of a dump of timeline 1 in segments of 1 MiB, by number (and whether they were written, or are kept to be
    /// used again), where `pg_waldump` ends with these words.
    async fn dumped(from: u64, segments: &[(u64, bool)], words: &str) -> PortResult<()> {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let waldump = format!("echo \"$@\" > \"$0.args\"; echo 'rmgr: Heap'; echo 'pg_waldump: error: {words}' >&2; exit 1");
        for (name, text) in
            [("pg_ctl", ""), ("pg_waldump", &*waldump), ("pg_controldata", "echo 'Bytes per WAL segment:                1048576'")]
        {
            std::fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(bin.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        for (number, written) in segments {
            let address = if *written { number << 20 } else { 1 << 20 };
            let header = [&[0x10, 0xD1, 7, 0, 1, 0, 0, 0][..], &address.to_le_bytes(), &[0; 8192]].concat();
            std::fs::write(dir.path().join(format!("pg_wal/00000001{:08X}{:08X}", number >> 12, number & 0xFFF)), header).unwrap();
        }
        let server = Server { data: dir.path().to_owned(), bin: Some(bin.clone()), ..Server::default() };
        let machine = Machine::new("orders in east".into(), server, "127.0.0.1".into(), 1);
        let into = dir.path().join("into");
        let done = machine.dump_log(1, Lsn(from), &into, Duration::from_secs(20)).await;
        // The first one and the last one by name, if the first is there.
        let args = std::fs::read_to_string(bin.join("pg_waldump.args")).unwrap();
        let (first, last) = (from >> 20, segments.iter().map(|(number, _)| *number).max().unwrap());
        let named = format!(" 00000001{:08X}{:08X} 00000001{:08X}{:08X}", first >> 12, first & 0xFFF, last >> 12, last & 0xFFF);
        let there = segments.iter().any(|(number, _)| *number == first);
        assert_eq!(args.trim_end().ends_with(&named), there, "{args} and {named}");
        done?;
        assert_eq!(std::fs::read_to_string(into).unwrap(), "rmgr: Heap\n");
        Ok(())
    }

    #[tokio::test]
    async fn the_end_of_a_log_is_told_from_a_hole_in_it() {
        const GONE: &str = "could not find file \"000000010000000000000005\": No such file or directory";
        const BROKEN: &str = "error in WAL record at 0/4000A8: invalid record length at 0/500028: wanted 24, got 0";
        let (within_4, at_5, within_5) = ((4 << 20) + 100, 5 << 20, (5 << 20) + 100);
        for (what, from, segments, words, hole) in [
            ("it ends with a segment", within_4, &[(4, true)][..], GONE, None),
            ("what follows is to be used again", within_4, &[(4, true), (6, false), (7, false)], GONE, None),
            ("what follows was written", within_4, &[(4, true), (6, true)], GONE, Some("later segments are there")),
            ("nothing was written after they parted", at_5, &[(4, true)], GONE, None),
            ("what they have in common is not there", within_5, &[(4, true)], GONE, Some("in which the two histories part")),
            ("it ends in a segment", within_4, &[(4, true), (5, false), (6, false)], BROKEN, None),
            ("it ends in a record that was going on", within_4, &[(4, true), (5, true), (6, false)], BROKEN, None),
            ("it is damaged", within_4, &[(4, true), (5, true), (6, true)], BROKEN, Some("cannot be read beyond 0/4000A8")),
        ] {
            match (dumped(from, segments, words).await, hole) {
                (Ok(()), None) => {}
                (Err(PortError::Refused(why)), Some(hole)) => assert!(why.contains(hole), "{what}: {why}"),
                (other, _) => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_value_cannot_leave_its_place_in_a_connection_string() {
        assert_eq!(conninfo_value(r"a' host=evil \"), r"'a\' host=evil \\'");
    }
}
