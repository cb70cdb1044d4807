//! Two ports, and a port that loops back inside.

use super::rig::{Rig, SOMEBODY, frame};

fn pair(name: &str) -> [Rig; 2] {
    // Each sees the other's end when it is reset.
    let mut ports = [0, 1].map(|_| Rig::new(&[("pair", name)]));
    for port in &mut ports {
        port.power_on();
        port.store(0, 1 << 6);
        port.rings();
    }
    ports
}

#[test]
fn what_one_port_sends_the_other_receives() {
    let [mut one, mut other] = pair("igb-both-ways");
    assert_eq!((one.load(8) & 2, other.load(8) & 2), (2, 2), "link up");
    for round in 0..40 {
        let (there, back) = (frame(SOMEBODY, round, 60), frame(SOMEBODY, round, 1514));
        one.send(&there);
        other.send(&back);
        one.poll();
        other.poll();
        one.poll();
        for (port, expected) in [(&mut other, there), (&mut one, back)] {
            assert_eq!(port.take().expect("it came").1, expected);
            port.give();
        }
    }
    assert!(one.take().is_none() && other.take().is_none());
}

#[test]
fn a_port_that_does_not_listen_keeps_nobody_waiting() {
    let [mut one, mut other] = pair("igb-deaf");
    other.store(0x100, 0);
    for number in 0..200 {
        one.send(&frame(SOMEBODY, number, 60));
        one.poll();
    }
    other.rings();
    other.poll();
    assert!(other.take().is_none(), "what came before is lost");
    one.send(&frame(SOMEBODY, 201, 60));
    one.poll();
    other.poll();
    assert_eq!(other.take_numbers(), [201]);
}

#[test]
fn frames_of_a_file_are_received_and_those_that_are_sent_are_written() {
    let folder = std::env::temp_dir();
    let path = |name: &str| folder.join(format!("ioasis-igb-{}-{name}", std::process::id()));
    let (sent, came) = (path("sent"), path("came"));
    let mut rig = Rig::ready(&[("tx", sent.to_str().expect("a plain path"))]);
    let frames = [frame(SOMEBODY, 1, 60), frame(SOMEBODY, 2, 1514)];
    for sent in &frames {
        rig.send(sent);
    }
    rig.poll();
    drop(rig);
    std::fs::rename(&sent, &came).expect("it was written");
    let mut rig = Rig::ready(&[("rx", came.to_str().expect("a plain path"))]);
    rig.poll();
    let _ = std::fs::remove_file(&came);
    for sent in frames {
        assert_eq!(rig.take().expect("it came").1, sent);
    }
}

#[test]
fn a_third_port_of_a_pair_is_refused() {
    let _two = pair("igb-third");
    let third = [("pair".to_owned(), "igb-third".to_owned())];
    let error = crate::model::create("igb", &third).expect_err("both ends are taken").to_string();
    assert!(error.contains("igb: pair=igb-third is not accepted; two cards"), "{error}");
}

#[test]
fn a_port_without_a_cable_hears_itself_by_its_phy_and_by_its_mac() {
    for phy in [true, false] {
        let mut rig = Rig::ready(&[]);
        if phy {
            rig.store(0x20, 0x4140 | 1 << 21 | 1 << 26);
            assert_eq!(rig.load(8) & 2, 2, "link up");
        } else {
            rig.store(0x100, 1 << 1 | 1 << 3 | 1 << 6 | 1 << 26);
        }
        rig.send(&frame(SOMEBODY, 1, 1024));
        rig.poll();
        assert_eq!(rig.take().expect("it came").1, frame(SOMEBODY, 1, 1024));
    }
    let mut rig = Rig::ready(&[]);
    rig.send(&frame(SOMEBODY, 1, 60));
    rig.poll();
    assert!(rig.take().is_none(), "nobody is there");
    assert_eq!(rig.load(0x4080), 1, "it was sent all the same");
}
