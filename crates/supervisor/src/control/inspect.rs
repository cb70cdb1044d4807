//! What a run is seen to be: address spaces, page tables, devices, groups, interrupts, charges, queues.
//!
//! Addresses are text (0x100000): programs that read JSON's numbers as floating point would round them.

use std::collections::BTreeMap;

use ioasis_iommufd::account::{Charges, Mode};
use ioasis_iommufd::type1::Container;
use ioasis_iommufd::{
    AreaLook, Context, Entry, HwptLook, Iova, IovaRange, Kind, ObjectKind, ObjectLook, QueueLook,
    SpaceLook, Step,
};
use ioasis_vfio::{Device, VectorLook};
use serde_json::{Value, json};

use super::answer::program;
use crate::serve::{OpenFile, OpenKind, Server};

/// Address spaces, page tables or queues shown in one answer.
const ENTRIES: usize = 1024;

/// Areas shown in one answer.
const AREAS: usize = 20_000;

/// Page tables shown as trees.
const DUMPS: usize = 32;

/// Bytes of a page table's text.
const TABLE_TEXT: usize = 128 << 10;

const KIB_PER_PAGE: u64 = 4;

fn hex(number: u64) -> Value {
    Value::String(format!("{number:#x}"))
}

/// Who opened a file, and which.
fn opened(file: &OpenFile) -> Value {
    json!({ "file": file.number, "path": file.path, "pid": file.pid, "program": program(file.pid) })
}

/// `value` with the fields of `opened`.
fn with(mut value: Value, more: Value) -> Value {
    if let (Value::Object(value), Value::Object(more)) = (&mut value, more) {
        value.extend(more);
    }
    value
}

/// Every iommufd with its objects, as long as `each` wants more.
fn contexts(server: &Server, mut each: impl FnMut(&OpenFile, &Context, &[ObjectLook]) -> bool) {
    for file in server.open_files() {
        if let OpenKind::Iommufd(context) = &file.kind
            && !each(&file, context, &context.look(0))
        {
            return;
        }
    }
}

pub(super) fn spaces(server: &Server) -> Value {
    let owners = owners(server);
    let (mut left, mut spaces) = (AREAS, Vec::new());
    for file in server.open_files() {
        if spaces.len() >= ENTRIES {
            break;
        }
        let looks = match &file.kind {
            OpenKind::Iommufd(context) => of_iommufd(context, left),
            OpenKind::Container(container) => vec![of_container(container, left)],
            _ => continue,
        };
        for (head, look) in looks {
            left -= look.as_ref().map_or(0, |look| look.areas.len());
            spaces.push(with(with(opened(&file), head), space(look.as_ref(), &owners)));
        }
    }
    spaces.truncate(ENTRIES);
    Value::Array(spaces)
}

/// The address spaces of an iommufd, with at most `areas` areas together.
fn of_iommufd(context: &Context, areas: usize) -> Vec<(Value, Option<SpaceLook>)> {
    let (mode, compat) = context.look_settings();
    let account = if mode == Mode::Process { "process" } else { "user" };
    let spaces = context.look(areas).into_iter().filter_map(|object| {
        let ObjectKind::Ioas(look) = object.kind else { return None };
        let head = json!({
            "kind": "ioas",
            "id": object.id,
            "account": account,
            "serves_container_calls": compat == Some(object.id),
        });
        Some((head, look))
    });
    spaces.take(ENTRIES).collect()
}

/// The address space of a container.
fn of_container(container: &Container, areas: usize) -> (Value, Option<SpaceLook>) {
    let Some(look) = container.look(areas) else {
        return (json!({ "kind": "container" }), None);
    };
    let maps = look.driver.is_some_and(|driver| driver != "noiommu");
    let space = if maps { look.space } else { Some(SpaceLook::default()) };
    (json!({ "kind": "container", "driver": look.driver, "groups": look.groups }), space)
}

/// Who reserves ranges, by token: devices and groups.
fn owners(server: &Server) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    for device in server.machine().devices.devices() {
        owners.insert(device.endpoint().token(), device.name().to_owned());
        let group = device.endpoint().group();
        owners.insert(group.token(), format!("group {}", group.number()));
    }
    owners
}

/// An address space as a map: what is mapped, reserved and free, by address.
fn space(look: Option<&SpaceLook>, owners: &BTreeMap<u64, String>) -> Value {
    let Some(look) = look else { return json!({ "busy": true }) };
    let mut map: Vec<(IovaRange, Value)> = Vec::new();
    map.extend(look.areas.iter().map(|area| (area.range, self::area(area))));
    map.extend(look.reserved.iter().map(|reserved| {
        let by = if reserved.is_aperture {
            "the page table's aperture"
        } else {
            owners.get(&reserved.owner).map_or("an access", String::as_str)
        };
        (reserved.range, json!({ "what": "reserved", "by": by }))
    }));
    // Of areas that are left out nothing is known, and so of holes between them.
    let end = if look.areas.len() < look.count {
        look.areas.last().map(|area| area.range.last())
    } else {
        Some(Iova(u64::MAX))
    };
    let holes = holes(look, end.unwrap_or(Iova(0)));
    map.extend(holes.into_iter().map(|range| (range, json!({ "what": "hole" }))));
    map.sort_by_key(|(range, _)| (range.start(), range.last()));
    let range =
        |range: IovaRange| json!({ "start": hex(range.start().0), "last": hex(range.last().0) });
    let map: Vec<Value> = map.into_iter().map(|(at, what)| with(range(at), what)).collect();
    json!({
        "areas": look.count,
        "left_out": look.count - look.areas.len(),
        "alignment": look.alignment,
        "page_tables": look.domains,
        "accesses": look.accesses,
        "map": map,
    })
}

/// What may be mapped up to `end` and is not.
fn holes(look: &SpaceLook, end: Iova) -> Vec<IovaRange> {
    let mut holes = Vec::new();
    for allowed in &look.allowed {
        let mut next = Some(allowed.start());
        let inside = look.areas.iter().filter_map(|area| area.range.intersect(*allowed));
        for area in inside {
            if let (Some(start), Some(before)) = (next, area.start().0.checked_sub(1)) {
                holes.extend(IovaRange::closed(start, Iova(before)).ok());
            }
            next = area.last().0.checked_add(1).map(Iova);
        }
        let last = allowed.last().min(end);
        holes.extend(next.and_then(|start| IovaRange::closed(start, last).ok()));
    }
    holes
}

fn area(area: &AreaLook) -> Value {
    let memory = match area.kind {
        Kind::User => "process",
        Kind::File => "file",
        Kind::DmaBuf => "dmabuf",
    };
    json!({
        "what": "area",
        "prot": access(area),
        "memory": memory,
        "address": area.address.map(hex),
        "pid": area.pid,
        "program": area.pid.map(program),
        "pinned_pages": area.pinned,
        "in_page_tables": area.filled,
        "revoked": area.revoked,
    })
}

fn access(area: &AreaLook) -> String {
    use ioasis_iommufd::Prot;
    let has = |prot: Prot, text| if area.prot.contains(prot) { text } else { "-" };
    [has(Prot::READ, "r"), has(Prot::WRITE, "w"), has(Prot::EXEC, "x")].concat()
}

pub(super) fn tables(server: &Server, request: &Value) -> Value {
    let dumps = request["tables"] == Value::Bool(true);
    let mut tables = Vec::new();
    contexts(server, |file, context, objects| {
        let mut devices: BTreeMap<u32, Vec<Value>> = BTreeMap::new();
        for object in objects {
            if let ObjectKind::Device { name, attached: Some(attached) } = &object.kind {
                for (pasid, hwpt) in attached {
                    let device = json!({ "device": &**name, "pasid": pasid });
                    devices.entry(*hwpt).or_default().push(device);
                }
            }
        }
        for object in objects {
            let ObjectKind::Hwpt(look) = &object.kind else { continue };
            let mut table = with(opened(file), hwpt(object.id, look));
            table["devices"] = Value::Array(devices.remove(&object.id).unwrap_or_default());
            if dumps
                && tables.len() < DUMPS
                && let Ok((text, whole)) = context.dump(object.id, TABLE_TEXT)
            {
                table["table"] = json!({ "text": text, "whole": whole });
            }
            tables.push(table);
        }
        tables.len() < ENTRIES
    });
    tables.truncate(ENTRIES);
    Value::Array(tables)
}

fn hwpt(id: u32, look: &HwptLook) -> Value {
    let sizes = (0..64).filter(|lg2| look.page_sizes >> lg2 & 1 == 1).map(|lg2| hex(1 << lg2));
    json!({
        "id": id,
        "ioas": look.ioas,
        "format": look.format,
        "start": hex(look.aperture.start().0),
        "last": hex(look.aperture.last().0),
        "page_sizes": sizes.collect::<Vec<_>>(),
        "automatic": look.is_automatic,
        "pasid": look.pasid,
        "dirty_tracking": look.dirty_tracking,
        "nest_parent": look.nest_parent,
        "nested": look.is_nested,
        "fault_queue": look.fault_queue,
    })
}

pub(super) fn devices(server: &Server) -> Value {
    let files = server.open_files();
    let devices = server.machine().devices.devices().iter().map(|device| {
        let (look, ids) = (device.look(), device.function().ids());
        let is_it = |file: &&OpenFile| matches!(&file.kind, OpenKind::Device(name) if name == device.name());
        json!({
            "address": device.name(),
            "vendor": format!("{:04x}", ids.vendor),
            "device": format!("{:04x}", ids.device),
            "class": format!("{:06x}", ids.class),
            "group": device.group().number(),
            "node": device.cdev().map(|(_, number)| format!("/dev/vfio/devices/vfio{number}")),
            "state": if look.is_removed { "removed" } else { look.open },
            "opened": files.iter().filter(is_it).map(opened).collect::<Vec<_>>(),
            "memory": look.memory,
            "bus_master": look.bus_master,
            "power": if look.d3hot { "D3hot" } else { "D0" },
            "low_power": look.low_power,
            "resets": look.resets,
            "dma": {
                "reads": look.reads.0,
                "read_bytes": look.reads.1,
                "writes": look.writes.0,
                "write_bytes": look.writes.1,
            },
        })
    });
    Value::Array(devices.collect())
}

pub(super) fn groups(server: &Server) -> Value {
    let files = server.open_files();
    let groups = server.machine().devices.groups().iter().map(|group| {
        let is_it = |file: &&OpenFile| matches!(file.kind, OpenKind::Group(number) if number == group.number());
        let devices: Vec<_> =
            group.devices().iter().map(|device| device.name().to_owned()).collect();
        let kind = match (group.is_no_iommu(), group.is_emulated()) {
            (true, _) => "noiommu",
            (_, true) => "emulated",
            _ => "iommu",
        };
        let head = json!({
            "number": group.number(),
            "node": format!("/dev/vfio/{}", group.node()),
            "kind": kind,
            "devices": devices,
            "opened": files.iter().filter(is_it).map(opened).collect::<Vec<_>>(),
        });
        let state = match group.look() {
            None => json!({ "busy": true }),
            Some(look) => json!({
                "open": look.is_open,
                "bound_cdevs": look.cdevs,
                "container": look.container,
                "devices_open": look.users,
                "owned": look.is_owned,
            }),
        };
        with(head, state)
    });
    Value::Array(groups.collect())
}

pub(super) fn interrupts(server: &Server) -> Value {
    let devices = server.machine().devices.devices().iter().map(|device| {
        let address = json!({ "address": device.name() });
        let Some(look) = device.look().irq else { return with(address, json!({ "busy": true })) };
        let vectors = look.vectors.iter().enumerate();
        // Of 2,048 vectors most are idle.
        let busy = vectors.filter(|(_, vector)| {
            vector.is_armed || vector.count > 0 || vector.is_pending == Some(true)
        });
        let busy: Vec<_> =
            busy.map(|(number, look)| with(json!({ "vector": number }), vector(look))).collect();
        let more = json!({
            "enabled": look.enabled,
            "vectors": look.vectors.len(),
            "used": busy,
            "error": vector(&look.error),
            "request": vector(&look.request),
        });
        with(address, more)
    });
    Value::Array(devices.collect())
}

fn vector(look: &VectorLook) -> Value {
    json!({
        "armed": look.is_armed,
        "unread": look.is_unread,
        "masked": look.is_masked,
        "pending": look.is_pending,
        "count": look.count,
    })
}

pub(super) fn charges(server: &Server) -> Value {
    let ledger = &server.machine().iommu.ledger;
    let (users, processes) = ledger.sums();
    let users = users.iter().map(|(uid, pages)| json!({ "uid": uid, "kib": pages * KIB_PER_PAGE }));
    let process = |(&pid, charges): (&u32, &Charges)| {
        json!({
            "pid": pid,
            "program": program(pid),
            "pinned_kib": charges.pinned * KIB_PER_PAGE,
            "locked_kib": charges.locked * KIB_PER_PAGE,
            "type1_kib": charges.type1 * KIB_PER_PAGE,
            "limit_kib": memlock(pid),
        })
    };
    json!({
        "users": users.collect::<Vec<_>>(),
        "processes": processes.iter().map(process).collect::<Vec<_>>(),
    })
}

/// What a process may lock by RLIMIT_MEMLOCK, in KiB; "unlimited", or nothing of one that is gone.
fn memlock(pid: u32) -> Value {
    let text = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    match line.and_then(|line| line.split_ascii_whitespace().next()) {
        Some("unlimited") => Value::String("unlimited".to_owned()),
        Some(bytes) => bytes.parse::<u64>().map_or(Value::Null, |bytes| json!(bytes / 1024)),
        None => Value::Null,
    }
}

pub(super) fn queues(server: &Server) -> Value {
    let mut queues = Vec::new();
    contexts(server, |file, _, objects| {
        for object in objects {
            let ObjectKind::Queue(look) = &object.kind else { continue };
            let queue = match look {
                QueueLook::Fault(None) => json!({ "kind": "fault", "busy": true }),
                QueueLook::Fault(Some((to_read, to_answer))) => {
                    json!({ "kind": "fault", "to_read": to_read, "to_answer": to_answer })
                }
                QueueLook::Event { kind, waiting, depth } => {
                    json!({ "kind": "event", "type": kind, "to_read": waiting, "depth": depth })
                }
                QueueLook::Hardware { index, memory } => json!({
                    "kind": "hardware",
                    "index": index,
                    "start": hex(memory.0),
                    "bytes": memory.1,
                }),
            };
            queues.push(with(with(opened(file), json!({ "id": object.id })), queue));
        }
        queues.len() < ENTRIES
    });
    queues.truncate(ENTRIES);
    Value::Array(queues)
}

/// How a device's IOVA is translated, word by word.
pub(super) fn translation(device: &Device, pasid: u32, iova: Iova) -> Value {
    let head = json!({ "device": device.name(), "pasid": pasid, "iova": hex(iova.0) });
    let Some(look) = device.endpoint().look_up(pasid, iova) else {
        return with(head, json!({ "attached": false }));
    };
    let nested = look.nested.as_ref().map(|nested| {
        let words = nested
            .words
            .iter()
            .map(|(address, word)| json!({ "address": hex(*address), "word": word.map(hex) }));
        json!({ "words": words.collect::<Vec<_>>(), "address": nested.ipa.map(hex) })
    });
    let more = json!({
        "attached": true,
        "nested": nested,
        "format": look.format,
        "start": hex(look.aperture.start().0),
        "last": hex(look.aperture.last().0),
        "input": hex(look.input.0),
        "steps": look.steps.iter().map(step).collect::<Vec<_>>(),
        "output": look.output.map(|output| hex(output.0)),
    });
    with(head, more)
}

fn step(step: &Step) -> Value {
    let fields = step.fields.iter().map(|field| {
        let bits = if field.first == field.last {
            field.first.to_string()
        } else {
            format!("{}:{}", field.last, field.first)
        };
        json!({ "name": field.name, "bits": bits, "value": hex(field.of(step.word)) })
    });
    let entry = match step.entry {
        Entry::Empty => "nothing",
        Entry::Table(_) => "table",
        Entry::Leaf => "leaf",
    };
    json!({
        "level": step.level,
        "name": step.name,
        "table": hex(step.table),
        "index": step.index,
        "word": hex(step.word),
        "entry": entry,
        "fields": fields.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ioasis_iommufd::Prot;

    fn closed(start: u64, last: u64) -> IovaRange {
        IovaRange::closed(Iova(start), Iova(last)).expect("a range")
    }

    fn mapped(start: u64, last: u64) -> AreaLook {
        AreaLook {
            range: closed(start, last),
            prot: Prot::READ,
            kind: Kind::User,
            address: Some(0),
            pid: Some(1),
            pinned: Some(0),
            filled: false,
            revoked: false,
        }
    }

    #[test]
    fn holes_are_what_is_allowed_and_not_mapped() {
        let mut look = SpaceLook {
            areas: vec![mapped(0, 0xfff), mapped(0x3000, 0x3fff), mapped(0xf000, 0xffff)],
            count: 3,
            allowed: vec![closed(0, 0x7fff), closed(0xf000, u64::MAX)],
            ..SpaceLook::default()
        };
        let all = Iova(u64::MAX);
        let expected = [closed(0x1000, 0x2fff), closed(0x4000, 0x7fff), closed(0x1_0000, u64::MAX)];
        assert_eq!(holes(&look, all), expected);
        assert_eq!(
            holes(&look, Iova(0x3fff)),
            expected[..1],
            "of what is left out nothing is said"
        );
        look.areas.push(mapped(u64::MAX - 0xfff, u64::MAX));
        assert_eq!(holes(&look, all)[2].last().0, u64::MAX - 0x1000);
        look.areas.clear();
        assert_eq!(holes(&look, all), look.allowed);
    }
}
