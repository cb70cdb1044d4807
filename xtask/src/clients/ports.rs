//! DPDK's testpmd forwards packets between two virtio-net cards, by the legacy interface and the
//! modern one.
//!
//! Debian 12's DPDK is too old for it: it takes where regions of a device begin from Linux's
//! sources, not from the device.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter};

use super::bench::{Bench, DEVICE};
use crate::debian::{self, Archive, Tree};
use crate::{cache, process};

const PACKAGES: [&str; 4] =
    ["dpdk-dev", "librte-net-virtio26", "librte-mempool-ring26", "librte-bus-pci26"];
const DRIVERS: &str = "usr/lib/x86_64-linux-gnu/dpdk/pmds-26.0";
/// Where `ioasis run` puts the second device.
const SECOND: &str = "0000:02:00.0";

/// Packets of the file that is forwarded.
const PACKETS: u32 = 2000;
/// Packets that testpmd sends first where the cards are connected with each other: two bursts of 32
/// on two ports.
const CIRCULATING: u64 = 128;

pub(super) fn run(bench: &mut Bench<'_>) -> Result<()> {
    let tree = Archive::of(bench.workspace, debian::SID)?.tree(&PACKAGES)?;
    cache::ensure_trusted(&tree.path(DRIVERS))?;
    for interface in ["legacy", "modern"] {
        let outcome = forward(bench, &tree, interface);
        bench.note(&format!("dpdk-testpmd of sid, {interface} virtio-net, a file"), outcome);
        let outcome = circulate(bench, &tree, interface);
        bench.note(&format!("dpdk-testpmd of sid, {interface} virtio-net, a pair"), outcome);
    }
    Ok(())
}

/// Each packet of a file that one card receives leaves by the other into a file, in order and with
/// the same bytes.
fn forward(bench: &Bench<'_>, tree: &Tree, interface: &str) -> Result<()> {
    println!("\n-- dpdk-testpmd forwards a file, {interface}");
    let (from, to) = (bench.work.join("from.pcap"), bench.work.join("to.pcap"));
    let packets = packets();
    write(&from, &packets)?;
    let cards = [
        format!("virtio-net,interface={interface},rx={}", from.display()),
        format!("virtio-net,interface={interface},tx={}", to.display()),
    ];
    testpmd(bench, tree, &cards, "start", 4)?;
    let came = read(&to)?;
    ensure!(came.len() == packets.len(), "{} of {PACKETS} packets came", came.len());
    ensure!(came == packets, "other packets came");
    Ok(())
}

/// Packets that go round between two cards never get fewer.
fn circulate(bench: &Bench<'_>, tree: &Tree, interface: &str) -> Result<()> {
    println!("\n-- dpdk-testpmd forwards between a pair, {interface}");
    let card = format!("virtio-net,interface={interface},pair=wire");
    let text = testpmd(bench, tree, &[card.clone(), card], "start tx_first 2", 10)?;
    let total = |what: &str| -> Result<u64> {
        let line = text.lines().rev().find(|line| line.trim_start().starts_with(what));
        let word = line.and_then(|line| line.split_whitespace().last());
        word.context("testpmd counted nothing")?.parse().context("a count that is none")
    };
    let (received, sent) = (total("RX-packets:")?, total("TX-packets:")?);
    println!("{sent} packets sent, {received} received");
    ensure!(received > 10 * CIRCULATING, "hardly any packet went round");
    ensure!(sent == received + CIRCULATING, "not {CIRCULATING} of them are on their way");
    Ok(())
}

/// Runs testpmd on two cards; answers what it printed. It repeats what the other card does not take
/// at once.
fn testpmd(
    bench: &Bench<'_>,
    tree: &Tree,
    cards: &[String; 2],
    start: &str,
    seconds: u32,
) -> Result<String> {
    let typed = format!(
        "echo set fwd io retry; echo set burst tx delay 50 retry 10000; sleep 1; echo {start}; sleep {seconds}; \
         echo stop; echo quit"
    );
    let mut run = bench.ioasis(&cards[0], 120);
    run.args([
        "--device",
        &cards[1],
        "--",
        "sh",
        "-c",
        r#"typed=$1; shift; sh -c "$typed" | "$@""#,
    ]);
    run.args(["sh", &typed]).args(tree.program("dpdk-testpmd")?);
    // Without huge pages each page of 4 KiB is a mapping, and a container has 65535 of them.
    run.args(["--lcores=0@0,1@0", "--iova-mode=va", "--no-huge", "-m", "32", "--no-telemetry"]);
    run.args(["-a", DEVICE, "-a", SECOND, "-d"]).arg(tree.path(DRIVERS));
    run.arg(format!("--file-prefix=ioasis-{}", std::process::id()));
    run.args(["--", "-i", "--total-num-mbufs=4096", "--no-flush-rx"]);
    let (succeeded, text) = process::tee(run)?;
    ensure!(succeeded, "testpmd failed");
    Ok(text)
}

/// Packets to everybody, numbered, of lengths from the shortest to the longest.
fn packets() -> Vec<Vec<u8>> {
    let packet = |number: u32| {
        let length = 60 + usize::try_from(number * 37 % 1455).expect("short");
        let mut bytes = vec![0xff; 6];
        bytes.extend([2, 0, 0, 0, 0, 2, 8, 0]);
        bytes.extend(number.to_le_bytes());
        bytes.extend(
            (bytes.len()..length).map(|at| (at * 7).to_le_bytes()[0] ^ number.to_le_bytes()[0]),
        );
        bytes
    };
    (0..PACKETS).map(packet).collect()
}

fn write(path: &Path, packets: &[Vec<u8>]) -> Result<()> {
    let mut writer = PcapWriter::new(File::create(path)?)?;
    for packet in packets {
        let length = u32::try_from(packet.len())?;
        writer.write_packet(&PcapPacket::new(Duration::from_secs(1), length, packet))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut reader = PcapReader::new(File::open(path)?)?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        packets.push(packet?.data.to_vec());
    }
    Ok(packets)
}
