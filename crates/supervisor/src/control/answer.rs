//! Which request gets which answer.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ioasis_iommufd::Iova;
use serde_json::{Value, json};

use super::serve::About;
use super::{change, inspect};
use crate::ledger;
use crate::serve::Server;

/// Looks at a server, as a request wants it.
type Look = fn(&Server, &Value) -> Value;

/// What can be inspected.
const TOPICS: [(&str, Look); 7] = [
    ("ioas", |server, _| inspect::spaces(server)),
    ("hwpt", inspect::tables),
    ("device", |server, _| inspect::devices(server)),
    ("group", |server, _| inspect::groups(server)),
    ("irq", |server, _| inspect::interrupts(server)),
    ("ledger", |server, _| inspect::charges(server)),
    ("queues", |server, _| inspect::queues(server)),
];

pub(super) fn answer(
    request: &Value,
    fds: Vec<OwnedFd>,
    (about, server): (&About, &Arc<Server>),
) -> Result<Value, String> {
    let ask = request["ask"].as_str().ok_or("a request says in `ask` what it wants")?;
    match ask {
        "about" => Ok(self::about(about, server)),
        "inspect" => inspected(request, server),
        "translate" => translated(request, server),
        "counters" => Ok(counters(about, server)),
        _ => change::change(ask, request, fds, server)
            .unwrap_or_else(|| Err(format!("this run has no answer to {ask:?}"))),
    }
}

/// The name of a process, for people.
pub(super) fn program(pid: u32) -> Value {
    ledger::name(pid).map_or(Value::Null, Value::String)
}

fn about(about: &About, server: &Server) -> Value {
    let devices = server.machine().devices.devices();
    let devices: Vec<_> = devices.iter().map(|device| device.name().to_owned()).collect();
    json!({
        "name": about.name,
        "pid": about.pid,
        "command": about.command,
        "devices": devices,
        "seconds": about.since.elapsed().as_secs(),
        "program": env!("CARGO_PKG_VERSION"),
    })
}

fn inspected(request: &Value, server: &Server) -> Result<Value, String> {
    let known = || TOPICS.map(|(name, _)| name).join(", ");
    let wanted: Vec<&str> = match &request["what"] {
        Value::Null => TOPICS.iter().map(|(name, _)| *name).collect(),
        Value::String(name) => vec![name],
        _ => return Err(format!("what is inspected is one of {}", known())),
    };
    let mut answer = serde_json::Map::new();
    for name in wanted {
        let topic = TOPICS.iter().find(|(topic, _)| *topic == name);
        let (topic, look) = topic
            .ok_or_else(|| format!("there is no {name:?} to inspect; there are {}", known()))?;
        answer.insert((*topic).to_owned(), look(server, request));
    }
    Ok(Value::Object(answer))
}

/// A number, written as one or as text with 0x before it.
pub(super) fn number(value: &Value) -> Option<u64> {
    match value {
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        other => other.as_u64(),
    }
}

fn translated(request: &Value, server: &Server) -> Result<Value, String> {
    let iova = number(&request["iova"]).ok_or("iova is a number")?;
    let pasid = match &request["pasid"] {
        Value::Null => 0,
        value => number(value)
            .and_then(|pasid| u32::try_from(pasid).ok())
            .filter(|pasid| *pasid < 1 << 20)
            .ok_or("a PASID has 20 bits")?,
    };
    let device = change::device(request, server)?;
    Ok(inspect::translation(&device, pasid, Iova(iova)))
}

fn counters(about: &About, server: &Server) -> Value {
    let machine = server.machine();
    let devices = machine.devices.devices().iter().map(|device| {
        let look = device.look();
        let interrupts =
            look.irq.as_ref().map(|irq| irq.vectors.iter().map(|vector| vector.count).sum::<u64>());
        json!({
            "address": device.name(),
            "open": look.open,
            "reads": look.reads.0,
            "read_bytes": look.reads.1,
            "writes": look.writes.0,
            "write_bytes": look.writes.1,
            "interrupts": interrupts,
        })
    });
    let millis = u64::try_from(about.since.elapsed().as_millis()).unwrap_or(u64::MAX);
    json!({
        "name": about.name,
        "milliseconds": millis,
        "calls": server.calls(),
        "refused_dma": machine.iommu.faults.total(),
        "devices": devices.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_or_text_of_one() {
        assert_eq!(number(&json!(7)), Some(7));
        assert_eq!(number(&json!("0xffffffffffffffff")), Some(u64::MAX));
        assert_eq!(number(&json!("12")), Some(12));
        for wrong in [json!(-1), json!(1.5), json!("0x"), json!("x"), json!(null), json!([1])] {
            assert_eq!(number(&wrong), None, "{wrong}");
        }
    }
}
