//! Machines that are reached by ssh: a real sshd on loopback, as the server's user. What is asked and done there is what is
//! asked and done on this machine; one that cannot be reached is said to be that.

use crate::{
    pg::{Home, free_port, other_user},
    pg_yard::{REWINDABLE, Yard, prepare, until},
};
use serde_json::json;
use std::{
    os::unix::fs::{PermissionsExt, chown},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

struct Sshd {
    child: Child,
    port: u16,
    /// The client's key.
    key: PathBuf,
    user: String,
    _home: Home,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).status().unwrap();
    assert!(made.success());
}

fn user() -> String {
    let id = match other_user() {
        Some((uid, _)) => uid.to_string(),
        None => String::from_utf8(Command::new("id").arg("-u").output().unwrap().stdout).unwrap().trim().to_owned(),
    };
    let known = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = known.lines().find(|l| l.split(':').nth(2) == Some(id.as_str()));
    line.and_then(|l| l.split(':').next()).expect("a user with a name").to_owned()
}

/// Not as root: then it serves nobody but the user that it runs as.
fn sshd() -> Sshd {
    let program = Path::new("/usr/sbin/sshd");
    assert!(program.exists(), "no sshd: make deps");
    let home = Home::new();
    let at = |name: &str| home.0.path().join(name);
    keygen(&at("host"));
    keygen(&at("client"));
    std::fs::copy(at("client.pub"), at("authorized")).unwrap();
    let port = free_port();
    let text = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\n",
        at("host").display(),
        at("authorized").display()
    );
    std::fs::write(at("sshd_config"), text).unwrap();
    let mut command = Command::new(program);
    command.args(["-D", "-e", "-f"]).arg(at("sshd_config")).stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(std::fs::File::create(at("sshd.log")).unwrap());
    if let Some((uid, gid)) = other_user() {
        for name in ["host", "authorized", "sshd_config"] {
            chown(at(name), Some(uid), Some(gid)).unwrap();
        }
        command.uid(uid).gid(gid);
    }
    std::fs::set_permissions(home.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let child = command.spawn().unwrap();
    let started = Sshd { child, port, key: at("client"), user: user(), _home: home };
    until("sshd listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    started
}

impl Sshd {
    fn reach(&self) -> Vec<String> {
        let mut words: Vec<String> =
            ["ssh", "-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o"].map(str::to_owned).to_vec();
        words.extend(["UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-i"].map(str::to_owned));
        words.extend([self.key.display().to_string(), "-p".into(), self.port.to_string(), format!("{}@127.0.0.1", self.user)]);
        words
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_by_ssh_is_the_same() {
    let sshd = sshd();
    let server = || json!({ "server": { "reach": sshd.reach() } });
    let yard = Yard::up(REWINDABLE, json!({ "instances": { "east": server(), "west": server() } }));
    let out = yard.done("database.switchover", json!({ "database": "orders", "to": "west", "max_pause": "10s" })).await;
    assert_eq!((out["rejoined"].as_bool(), out["timeline_after"].as_u64()), (Some(true), Some(2)), "{out}");
    eprintln!("by ssh: write pause {} ms", out["write_pause_ms"]);
    assert_eq!(yard.writable().await, ["west"]);
    let proof = yard.done("database.fence", json!({ "database": "orders", "region": "west", "by": ["server_stopped"] })).await;
    assert!(proof["proof"]["detail"].as_str().unwrap().contains("no process"), "{proof}");
    drop(sshd);
    let cx = yard.next("rejoin");
    let lost = prepare(&cx, "database.fence", &json!({ "database": "orders", "region": "east", "by": ["server_stopped"] })).await;
    let lost = match lost {
        Ok(intent) => crate::pg_yard::apply(&cx, "database.fence", &intent).await.unwrap_err(),
        Err(failure) => failure,
    };
    assert!(["unreachable", "unknown"].contains(&lost.code.as_str()) && lost.message.contains("cannot be reached"), "{lost}");
}
