//! Which server, as whom: `postgres://user[:password]@host[:port]/[database]?sslmode=…`, as libpq reads it, with
//! an error for whatever it does not know instead of a silent default.
//!
//! The password is the URL's, else that of `PGPASSWORD`, else the matching line of the password file: the one that
//! `?passfile=` names, or `PGPASSFILE`, or `~/.pgpass`. A host that begins with `/` is the directory of a socket.

use super::error::{PgError, PgResult};
use secrecy::{ExposeSecret, SecretString};
use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

/// How much of TLS is asked for, as libpq means it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// If the server offers it.
    Prefer,
    /// Encrypted, whoever answers; with `sslrootcert` as `VerifyCa`.
    Require,
    /// The certificate is one of the given authority.
    VerifyCa,
    /// And it names the host.
    VerifyFull,
}

/// Who vouches for the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those that the machine trusts.
    System,
    File(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: Option<String>,
    pub password: Option<SecretString>,
    /// Where the password came from, for messages.
    pub password_from: String,
    pub ssl: SslMode,
    pub roots: Option<Roots>,
    pub connect_timeout: Duration,
}

const CONNECT: Duration = Duration::from_secs(10);
const LARGEST_PASSFILE: u64 = 1024 * 1024;

/// Does this name a PostgreSQL server?
#[must_use]
pub fn is_url(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// What the environment says of a name.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Target {
    /// As an estate says it, which says nothing of TLS: it is used where the server offers it.
    #[must_use]
    pub fn new(host: String, port: u16, user: String, database: Option<String>, password: Option<SecretString>) -> Self {
        let password_from = if password.is_some() { "the estate" } else { "nowhere" }.to_owned();
        let (ssl, roots, connect_timeout) = (SslMode::Prefer, None, CONNECT);
        Self { host, port, user, database, password, password_from, ssl, roots, connect_timeout }
    }

    /// # Errors
    /// When something in the URL is not known or not right, or a password file cannot be read.
    pub fn parse(url: &str) -> PgResult<Self> {
        Self::parse_in(url, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn parse_in(text: &str, env: Environment) -> PgResult<Self> {
        let wrong = |what: String| PgError::Config(format!("the URL `{}`: {what}", without_password(text)));
        let url = Url::parse(&with_host(text)).map_err(|e| wrong(format!("{e}; write postgres://USER@HOST[:PORT]/[DATABASE]")))?;
        if !is_url(text) {
            return Err(wrong("it must begin with postgres://".to_owned()));
        }
        let decoded = |what: &str, part: &str| decode(part).ok_or_else(|| wrong(format!("its {what} is not UTF-8 once decoded")));
        let mut host = decoded("host", url.host_str().filter(|host| *host != NOWHERE).unwrap_or_default())?;
        let mut found = Options::default();
        for (name, value) in url.query_pairs() {
            found.take(&name, &value, &mut host).map_err(&wrong)?;
        }
        if let Some(bare) = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            host = bare.to_owned();
        }
        if host.is_empty() {
            return Err(wrong("it names no host: name one, or a socket's directory as ?host=/var/run/postgresql".to_owned()));
        }
        if host.contains(',') {
            return Err(wrong("it names several hosts: name the one server that is meant".to_owned()));
        }
        let user = match url.username() {
            "" => env("PGUSER").ok_or_else(|| wrong("it names no user: write postgres://USER@…, or set PGUSER".to_owned()))?,
            name => decoded("user", name)?,
        };
        let database = Some(decoded("database", url.path().trim_start_matches('/'))?).filter(|name| !name.is_empty());
        let given = url.password().map(|word| decoded("password", word)).transpose()?;
        let mut target = Self {
            port: url.port().unwrap_or(5432),
            password: None,
            password_from: "nowhere".to_owned(),
            ssl: found.ssl.unwrap_or(SslMode::Prefer),
            roots: found.roots,
            connect_timeout: found.connect_timeout.unwrap_or(CONNECT),
            host,
            user,
            database,
        };
        if let Some(word) = given {
            target.know(word, "the URL");
        } else if let Some(word) = env("PGPASSWORD") {
            target.know(word, "PGPASSWORD");
        } else {
            target.ask_file(found.passfile.as_deref(), env)?;
        }
        Ok(target)
    }

    fn know(&mut self, word: String, from: &str) {
        self.password = Some(SecretString::from(word));
        from.clone_into(&mut self.password_from);
    }

    /// A file that was named must be there; `~/.pgpass` need not.
    fn ask_file(&mut self, named: Option<&Path>, env: Environment) -> PgResult<()> {
        let (file, must) = match (named, env("PGPASSFILE"), env("HOME")) {
            (Some(file), ..) => (file.to_owned(), true),
            (None, Some(file), _) => (PathBuf::from(file), true),
            (None, None, Some(home)) => (Path::new(&home).join(".pgpass"), false),
            (None, None, None) => return Ok(()),
        };
        let wrong = |why: String| PgError::Config(format!("the password file `{}`: {why}", file.display()));
        let meta = match std::fs::metadata(&file) {
            // One in a home that is not this user's (`sudo`, a service) is not meant.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) && !must => return Ok(()),
            Err(e) => return Err(wrong(e.to_string())),
            Ok(meta) => meta,
        };
        if meta.mode() & 0o077 != 0 {
            return Err(wrong(format!("others may read it: chmod 0600 {}", file.display())));
        }
        if meta.len() > LARGEST_PASSFILE {
            return Err(wrong(format!("it has {} bytes, more than any password file", meta.len())));
        }
        // Not the error itself: it would hold the bytes.
        let text =
            String::from_utf8(std::fs::read(&file).map_err(|e| wrong(e.to_string()))?).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
        if let Some(word) = look_up(&text, &[&self.known_as(), &self.port.to_string(), self.database_or_any(), &self.user]) {
            self.know(word, &format!("the password file {}", file.display()));
        }
        Ok(())
    }

    /// A socket is `localhost` in a password file.
    fn known_as(&self) -> String {
        if self.is_socket() { "localhost".to_owned() } else { self.host.clone() }
    }

    fn database_or_any(&self) -> &str {
        self.database.as_deref().unwrap_or("replication")
    }

    #[must_use]
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// For messages.
    #[must_use]
    pub fn at(&self) -> String {
        if self.is_socket() { format!("{}/.s.PGSQL.{}", self.host, self.port) } else { format!("{}:{}", self.host, self.port) }
    }

    /// The URL without the password and without what concerns this connection alone.
    #[must_use]
    pub fn url(&self) -> String {
        let database = encode(self.database.as_deref().unwrap_or_default());
        let user = encode(&self.user);
        if self.is_socket() {
            return format!("postgres://{user}@:{}/{database}?host={}", self.port, self.host).replace("@:5432/", "@/");
        }
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        format!("postgres://{user}@{host}:{}/{database}", self.port)
    }

    /// The same server, another database of it.
    #[must_use]
    pub fn in_database(&self, name: &str) -> Self {
        Self { database: Some(name.to_owned()), ..self.clone() }
    }

    pub(super) fn password(&self) -> Option<&str> {
        self.password.as_ref().map(ExposeSecret::expose_secret)
    }
}

/// Stands for the host where a URL has none, which libpq allows and the rules for URLs do not.
const NOWHERE: &str = "host.invalid";

fn with_host(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (who, place) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let host = if place.is_empty() || place.starts_with(':') { NOWHERE } else { "" };
    format!("{scheme}://{who}{host}{place}{tail}")
}

#[derive(Default)]
struct Options {
    ssl: Option<SslMode>,
    roots: Option<Roots>,
    passfile: Option<PathBuf>,
    connect_timeout: Option<Duration>,
}

impl Options {
    fn take(&mut self, name: &str, value: &str, host: &mut String) -> Result<(), String> {
        match name {
            "host" => value.clone_into(host),
            "sslmode" => {
                self.ssl = Some(match value {
                    "disable" => SslMode::Disable,
                    "prefer" => SslMode::Prefer,
                    "require" => SslMode::Require,
                    "verify-ca" => SslMode::VerifyCa,
                    "verify-full" => SslMode::VerifyFull,
                    _ => return Err(format!("sslmode `{value}` is none of disable, prefer, require, verify-ca, verify-full")),
                });
            }
            "sslrootcert" if value == "system" => self.roots = Some(Roots::System),
            "sslrootcert" => self.roots = Some(Roots::File(PathBuf::from(value))),
            "passfile" => self.passfile = Some(PathBuf::from(value)),
            "connect_timeout" => {
                let seconds: u64 = value.parse().map_err(|_| format!("connect_timeout `{value}` is not a number of seconds"))?;
                self.connect_timeout = Some(Duration::from_secs(seconds.max(1)));
            }
            // It goes without saying what this connection is called.
            "application_name" => {}
            other => {
                return Err(format!(
                    "`{other}` is not known: host, sslmode, sslrootcert, passfile, connect_timeout and application_name are"
                ));
            }
        }
        Ok(())
    }
}

/// The first line whose four fields are these or `*`. A backslash takes the next character as it is.
fn look_up(text: &str, wanted: &[&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields_of(line);
        let matches = fields.len() == 5 && fields.iter().zip(wanted).all(|(field, want)| field == "*" || field == want);
        matches.then(|| fields[4].clone())
    })
}

/// The password is the rest of the line, colons and all.
fn fields_of(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let whole = fields.len() == 5;
        let Some(last) = fields.last_mut() else { break };
        match c {
            '\\' => last.extend(chars.next()),
            ':' if !whole => fields.push(String::new()),
            c => last.push(c),
        }
    }
    fields
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = (first == b'%').then(|| tail.get(..2)).flatten();
        match hex.and_then(|two| std::str::from_utf8(two).ok()).and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => (bytes.push(byte), rest = &tail[2..]).1,
            None => (bytes.push(first), rest = tail).1,
        }
    }
    String::from_utf8(bytes).ok()
}

fn encode(part: &str) -> String {
    part.bytes().fold(String::new(), |mut text, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
        text
    })
}

/// A URL that may not even be one, fit for a message.
#[must_use]
pub fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return "…".to_owned() };
    match rest.rsplit_once('@') {
        Some((who, place)) => format!("{scheme}://{}@{place}", who.split(':').next().unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn parse(url: &str) -> Target {
        Target::parse_in(url, &|_| None).unwrap()
    }
    fn wrong(url: &str) -> String {
        Target::parse_in(url, &|_| None).unwrap_err().to_string()
    }

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let t = parse("postgres://an%40a:s3%3Acret@db.example:6000/app?sslmode=verify-full&sslrootcert=system&connect_timeout=3");
        assert_eq!((t.host.as_str(), t.port, t.user.as_str(), t.database.as_deref()), ("db.example", 6000, "an@a", Some("app")));
        assert_eq!((t.password(), t.password_from.as_str()), (Some("s3:cret"), "the URL"));
        assert_eq!((t.ssl, t.roots.clone(), t.connect_timeout.as_secs()), (SslMode::VerifyFull, Some(Roots::System), 3));
        assert_eq!(t.url(), "postgres://an%40a@db.example:6000/app");
        assert!(!format!("{t:?}").contains("s3:cret"));

        let t = parse("postgresql://rep@[::1]/");
        assert_eq!((t.host.as_str(), t.port, t.database.clone(), t.ssl), ("::1", 5432, None, SslMode::Prefer));
        assert_eq!(t.url(), "postgres://rep@[::1]:5432/");

        for url in ["postgres://rep@%2Fvar%2Frun%2Fpostgresql:5433/x", "postgres://rep@:5433/x?host=/var/run/postgresql"] {
            let t = parse(url);
            assert!(t.is_socket());
            assert_eq!(t.at(), "/var/run/postgresql/.s.PGSQL.5433");
        }
        assert_eq!(parse("postgres://rep@/x?host=/run/pg").at(), "/run/pg/.s.PGSQL.5432");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_does_not_tell_the_password() {
        for (url, says) in [
            ("postgres://u:hunter2@h/x?sslmode=allow", "sslmode `allow`"),
            ("postgres://u:hunter2@h/x?target_session_attrs=any", "`target_session_attrs` is not known"),
            ("postgres://:hunter2@h/x", "names no user"),
            ("postgres://u:hunter2@/x", "names no host"),
            ("postgres://u:hunter2@h:99999/x", "port"),
            ("mysql://u:hunter2@h/x", "postgres://"),
            ("postgres://u:hunter2@h,g/x", "several hosts"),
            ("postgres://u:hunter2@h/?connect_timeout=soon", "not a number"),
        ] {
            let text = wrong(url);
            assert!(text.contains(says) && !text.contains("hunter2"), "{url}: {text}");
        }
    }

    #[test]
    fn the_password_comes_from_the_first_place_that_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pass");
        std::fs::write(&file, "# old\nh:5432:*:other:no\nh:*:*:u:fr\\:om:file\n*:*:*:*:last\n").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let url = format!("postgres://u@h/?passfile={}", file.display());
        let t = parse(&url);
        assert_eq!((t.password(), t.password_from.contains("pass")), (Some("fr:om:file"), true));
        let t = Target::parse_in(&url, &|name| (name == "PGPASSWORD").then(|| "from env".to_owned())).unwrap();
        assert_eq!((t.password(), t.password_from.as_str()), (Some("from env"), "PGPASSWORD"));
        let t = parse(&format!("postgres://v@g/?passfile={}", file.display()));
        assert_eq!(t.password(), Some("last"));

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(wrong(&url).contains("chmod 0600"), "{}", wrong(&url));
        assert!(wrong("postgres://u@h/?passfile=/nonexistent/pass").contains("/nonexistent/pass"));
    }
}
