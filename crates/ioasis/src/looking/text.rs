//! Answers of runs as text.

use std::fmt::Write as _;

use serde_json::Value;

/// Text without characters that a terminal would obey: names of programs are theirs to choose.
pub(super) fn plain(text: impl AsRef<str>) -> String {
    let mut plain = String::new();
    for c in text.as_ref().chars() {
        if c.is_control() {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// A value as a word: text as it is, nothing as a dash.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => plain(text),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => plain(other.to_string()),
    }
}

/// The words of a list.
pub(super) fn list(value: &Value, between: &str) -> String {
    let words = value.as_array().into_iter().flatten();
    words.map(word).collect::<Vec<_>>().join(between)
}

/// Seconds, in their two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// Rows, each column as wide as its widest word.
pub(super) fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    };
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(line, "{cell:<width$}  ", width = width(column));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// What is known of `topic`.
pub(super) fn topic(topic: &str, value: &Value) -> String {
    let each = |write: fn(&mut String, &Value)| {
        let mut text = String::new();
        for entry in value.as_array().into_iter().flatten() {
            write(&mut text, entry);
        }
        if text.is_empty() { "none\n".to_owned() } else { text }
    };
    match topic {
        "ioas" => each(space),
        "hwpt" => each(table),
        "device" => each(device),
        "group" => each(group),
        "irq" => each(interrupts),
        "queues" => each(queue),
        _ => ledger(value),
    }
}

/// "by qemu (pid 7, file 3)".
fn opener(value: &Value) -> String {
    let [program, pid, file] = [&value["program"], &value["pid"], &value["file"]].map(word);
    format!("{program} (pid {pid}, file {file})")
}

fn space(text: &mut String, space: &Value) {
    let what = if space["kind"] == "container" {
        let driver =
            if space["driver"].is_null() { "no driver yet".into() } else { word(&space["driver"]) };
        format!("container, {driver}, groups {}", list(&space["groups"], " "))
    } else {
        format!("IOAS {}", word(&space["id"]))
    };
    let _ = writeln!(text, "{what}: {} of {}", word(&space["path"]), opener(space));
    if space["busy"] == true {
        let _ = writeln!(text, "  a call has it");
        return;
    }
    let [areas, tables, accesses, alignment] =
        ["areas", "page_tables", "accesses", "alignment"].map(|key| word(&space[key]));
    let _ = writeln!(
        text,
        "  {areas} areas, {tables} page tables, {accesses} accesses, mappings aligned to {alignment}"
    );
    let mut rows = Vec::new();
    for entry in space["map"].as_array().into_iter().flatten() {
        let range = format!("  {}-{}", word(&entry["start"]), word(&entry["last"]));
        rows.push([range, word(&entry["what"]), behind(entry)]);
    }
    text.push_str(&columns(&rows));
    if let Some(left_out @ 1..) = space["left_out"].as_u64() {
        let _ = writeln!(text, "  and {left_out} areas that are not shown");
    }
}

/// What is behind a part of a map.
fn behind(entry: &Value) -> String {
    match entry["what"].as_str() {
        Some("reserved") => format!("for {}", word(&entry["by"])),
        Some("area") => {
            let [prot, memory, address, program, pid] =
                ["prot", "memory", "address", "program", "pid"].map(|key| word(&entry[key]));
            let revoked = if entry["revoked"] == true { ", taken away" } else { "" };
            let shown = if entry["in_page_tables"] == true { "" } else { ", in no page table" };
            format!("{prot} {memory} {address} of {program} (pid {pid}){shown}{revoked}")
        }
        _ => String::new(),
    }
}

fn table(text: &mut String, table: &Value) {
    let [id, ioas, format] = ["id", "ioas", "format"].map(|key| word(&table[key]));
    let _ = writeln!(text, "HWPT {id}: IOAS {ioas}, {format}, of {}", opener(table));
    let [start, last] = ["start", "last"].map(|key| word(&table[key]));
    let _ = writeln!(text, "  {start}-{last}, leaves of {}", list(&table["page_sizes"], " "));
    let flags = ["automatic", "nested", "nest_parent", "pasid", "dirty_tracking"];
    let flags: Vec<_> = flags.into_iter().filter(|flag| table[*flag] == true).collect();
    if !flags.is_empty() {
        let _ = writeln!(text, "  {}", flags.join(", ").replace('_', " "));
    }
    if !table["fault_queue"].is_null() {
        let _ = writeln!(text, "  fault queue {}", word(&table["fault_queue"]));
    }
    for device in table["devices"].as_array().into_iter().flatten() {
        let pasid = device["pasid"].as_u64().filter(|pasid| *pasid > 0);
        let pasid = pasid.map_or_else(String::new, |pasid| format!(", PASID {pasid}"));
        let _ = writeln!(text, "  attached: {}{pasid}", word(&device["device"]));
    }
    if let Some(tree) = table["table"]["text"].as_str() {
        for line in tree.lines() {
            let _ = writeln!(text, "  {}", plain(line));
        }
        if table["table"]["whole"] == false {
            let _ = writeln!(text, "  and more that is not shown");
        }
    }
}

/// Who has a device or a group open.
fn openers(text: &mut String, value: &Value) {
    for open in value["opened"].as_array().into_iter().flatten() {
        let _ = writeln!(text, "  open: {} of {}", word(&open["path"]), opener(open));
    }
}

fn device(text: &mut String, device: &Value) {
    let [address, vendor, id, group, state, power] =
        ["address", "vendor", "device", "group", "state", "power"].map(|key| word(&device[key]));
    let _ = writeln!(text, "{address} {vendor}:{id} group {group}: {state}, {power}");
    let on = |key: &str| if device[key] == true { "on" } else { "off" };
    let _ = writeln!(
        text,
        "  memory decoding {}, bus mastering {}, {} resets",
        on("memory"),
        on("bus_master"),
        word(&device["resets"])
    );
    let dma = &device["dma"];
    let [reads, read, writes, written] =
        ["reads", "read_bytes", "writes", "write_bytes"].map(|key| word(&dma[key]));
    let _ =
        writeln!(text, "  DMA: {reads} reads of {read} bytes, {writes} writes of {written} bytes");
    openers(text, device);
}

fn group(text: &mut String, group: &Value) {
    let [number, node, kind] = ["number", "node", "kind"].map(|key| word(&group[key]));
    let devices = list(&group["devices"], " ");
    let _ = writeln!(text, "group {number}: {node}, {kind}, devices {devices}");
    if group["busy"] == true {
        let _ = writeln!(text, "  a call has it");
    } else {
        let container = match group["container"].as_str() {
            None => "no container".to_owned(),
            Some(file) => {
                format!("its {file} set, held by {} devices", word(&group["devices_open"]))
            }
        };
        let owned = if group["owned"] == true { "owned" } else { "free" };
        let cdevs = word(&group["bound_cdevs"]);
        let _ = writeln!(text, "  {owned}, {container}, {cdevs} devices bound by their own nodes");
    }
    openers(text, group);
}

fn interrupts(text: &mut String, device: &Value) {
    let address = word(&device["address"]);
    if device["busy"] == true {
        let _ = writeln!(text, "{address}: a call has its interrupts");
        return;
    }
    match device["enabled"].as_str() {
        None => {
            let _ = writeln!(text, "{address}: none enabled");
        }
        Some(kind) => {
            let _ = writeln!(text, "{address}: {kind}, {} enabled", word(&device["vectors"]));
        }
    }
    let mut rows = Vec::new();
    let mut row = |name: String, vector: &Value| {
        let on = |key: &str, yes: &str| {
            if vector[key] == true { yes.to_owned() } else { String::new() }
        };
        let armed = if vector["armed"] == true { "eventfd" } else { "no eventfd" };
        rows.push([
            format!("  {name}"),
            armed.to_owned(),
            on("masked", "masked"),
            on("pending", "pending"),
            on("unread", "unread"),
            format!("{} signals", word(&vector["count"])),
        ]);
    };
    for vector in device["used"].as_array().into_iter().flatten() {
        row(word(&vector["vector"]), vector);
    }
    for (key, name) in [("error", "ERR"), ("request", "REQ")] {
        row(name.to_owned(), &device[key]);
    }
    text.push_str(&columns(&rows));
}

fn queue(text: &mut String, queue: &Value) {
    let [id, kind] = ["id", "kind"].map(|key| word(&queue[key]));
    let state = match queue["kind"].as_str() {
        _ if queue["busy"] == true => "a call has it".to_owned(),
        Some("fault") => format!(
            "{} page requests to be read, {} to be answered",
            word(&queue["to_read"]),
            word(&queue["to_answer"])
        ),
        Some("event") => format!(
            "type {}, {} of {} events to be read",
            word(&queue["type"]),
            word(&queue["to_read"]),
            word(&queue["depth"])
        ),
        _ => format!(
            "number {}, {} bytes from {}",
            word(&queue["index"]),
            word(&queue["bytes"]),
            word(&queue["start"])
        ),
    };
    let _ = writeln!(text, "{kind} queue {id} of {}: {state}", opener(queue));
}

fn ledger(value: &Value) -> String {
    let mut rows =
        vec![["PID", "PROGRAM", "PINNED KIB", "LOCKED KIB", "LIMIT KIB"].map(str::to_owned)];
    for process in value["processes"].as_array().into_iter().flatten() {
        rows.push(
            ["pid", "program", "pinned_kib", "locked_kib", "limit_kib"]
                .map(|key| word(&process[key])),
        );
    }
    let mut text = columns(&rows);
    for user in value["users"].as_array().into_iter().flatten() {
        let _ = writeln!(
            text,
            "user {}: {} KiB by all processes together",
            word(&user["uid"]),
            word(&user["kib"])
        );
    }
    text
}

/// A translation, word by word.
pub(super) fn translation(value: &Value) -> String {
    let mut text = String::new();
    let [device, iova] = ["device", "iova"].map(|key| word(&value[key]));
    let pasid = value["pasid"].as_u64().filter(|pasid| *pasid > 0);
    let pasid = pasid.map_or_else(String::new, |pasid| format!(" with PASID {pasid}"));
    let _ = writeln!(text, "{device}{pasid}, address {iova}");
    if value["attached"] == false {
        let _ = writeln!(text, "  attached to nothing: every access is refused");
        return text;
    }
    if value["nested"].is_object() {
        let nested = &value["nested"];
        let _ = writeln!(text, "the program's own table:");
        for read in nested["words"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "  at {}: {}", word(&read["address"]), word(&read["word"]));
        }
        match nested["address"].as_str() {
            Some(address) => {
                let _ = writeln!(text, "  leads to {} in the nest parent", plain(address));
            }
            None => {
                let _ = writeln!(text, "  leads nowhere");
                return text;
            }
        }
    }
    let [format, start, last] = ["format", "start", "last"].map(|key| word(&value[key]));
    let _ = writeln!(text, "{format}, {start}-{last}:");
    let steps = value["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    if steps.is_empty() {
        let _ = writeln!(text, "  the address lies outside of what the page table translates");
    }
    for step in steps {
        let [level, name, index, entry, at] =
            ["level", "name", "index", "word", "entry"].map(|key| word(&step[key]));
        let _ = writeln!(text, "  level {level}, {name} {index}: {entry} {at}");
        let fields = step["fields"].as_array().into_iter().flatten().map(|field| {
            let [name, bits, value] = ["name", "bits", "value"].map(|key| word(&field[key]));
            format!("{name}[{bits}]={value}")
        });
        let _ = writeln!(text, "    {}", fields.collect::<Vec<_>>().join(" "));
    }
    match value["output"].as_str() {
        Some(output) => {
            let _ = writeln!(text, "leads to {} of physical space", plain(output));
        }
        None => {
            let _ = writeln!(text, "nothing is mapped");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(word(&json!("a\u{1b}[2Jb\n")), "a\\u{1b}[2Jb\\u{a}");
    }

    #[test]
    fn an_age_has_two_units() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 90_061].map(age),
            ["0s", "59s", "1m0s", "59m59s", "1h0m", "1d1h"]
        );
    }

    #[test]
    fn a_map_has_a_line_for_each_part() {
        let space = json!({
            "kind": "ioas", "id": 1, "path": "/dev/iommu", "pid": 7, "program": "x", "file": 3,
            "areas": 1, "left_out": 2, "alignment": 4096, "page_tables": 1, "accesses": 0,
            "map": [
                { "start": "0x0", "last": "0xfff", "what": "hole" },
                { "start": "0x1000", "last": "0x1fff", "what": "area", "prot": "rw-", "memory": "process",
                  "address": "0x7000", "pid": 7, "program": "x", "pinned_pages": 1, "in_page_tables": true, "revoked": false },
                { "start": "0xfee00000", "last": "0xfeefffff", "what": "reserved", "by": "0000:01:00.0" },
            ],
        });
        assert_eq!(
            topic("ioas", &json!([space])),
            "IOAS 1: /dev/iommu of x (pid 7, file 3)
  1 areas, 1 page tables, 0 accesses, mappings aligned to 4096
  0x0-0xfff              hole
  0x1000-0x1fff          area      rw- process 0x7000 of x (pid 7)
  0xfee00000-0xfeefffff  reserved  for 0000:01:00.0
  and 2 areas that are not shown
"
        );
        assert_eq!(topic("ioas", &json!([])), "none\n");
    }
}
