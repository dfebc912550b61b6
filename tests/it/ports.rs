//! Port numbers for the servers that tests start. Many tests run at once, each in a process of its own, and a number is
//! picked some time before a server listens on it. So each process takes blocks of ten numbers, which it keeps from all
//! others until it ends, and they lie below those that the system gives to whoever connects or asks for any port.

use std::{
    net::{TcpListener, UdpSocket},
    sync::Mutex,
};

const BLOCKS: u16 = 1_200;
const FIRST: u16 = 10_000;

struct Block {
    base: u16,
    /// The last number that was given out.
    given: u16,
    /// What keeps others from it, at its first number: a socket is given back however the process ends.
    _lock: UdpSocket,
}

static BLOCKS_OF_THIS_PROCESS: Mutex<Vec<Block>> = Mutex::new(Vec::new());

/// A block that nobody has.
fn another() -> Block {
    let from = std::process::id();
    let lock = |n: u16| {
        let base = FIRST + ((from + u32::from(n)) % u32::from(BLOCKS)) as u16 * 10;
        UdpSocket::bind(("127.0.0.1", base)).ok().map(|lock| Block { base, given: base, _lock: lock })
    };
    (0..BLOCKS).find_map(lock).expect("no block of ports is free")
}

fn free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok()
}

/// One on 127.0.0.1, for TCP and for UDP alike.
pub fn free_port() -> u16 {
    let mut blocks = BLOCKS_OF_THIS_PROCESS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    loop {
        let Some(block) = blocks.last_mut().filter(|block| block.given < block.base + 9) else {
            blocks.push(another());
            continue;
        };
        block.given += 1;
        let port = block.given;
        if free(port) {
            return port;
        }
    }
}

/// The first of four in a row; those 10,000 above them are free as well.
pub fn four_ports() -> u16 {
    let mut blocks = BLOCKS_OF_THIS_PROCESS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for _ in 0..100 {
        let block = another();
        let first = block.base + 1;
        // The current one may have some left: it stays the last.
        blocks.insert(0, Block { given: block.base + 9, ..block });
        if (first..first + 4).all(|port| free(port) && free(port + 10_000)) {
            return first;
        }
    }
    panic!("no four ports in a row are free")
}

#[test]
fn no_two_are_given_the_same_port_and_none_is_a_clients() {
    let given: Vec<u16> = (0..25).map(|_| free_port()).chain([four_ports()]).collect();
    let unique: std::collections::BTreeSet<_> = given.iter().collect();
    assert_eq!(unique.len(), given.len(), "{given:?}");
    for port in given {
        assert!((FIRST..FIRST + 10 * BLOCKS).contains(&port), "{port}");
        let base = port - port % 10;
        assert!(UdpSocket::bind(("127.0.0.1", base)).is_err(), "another process could take {port} as well");
    }
}
