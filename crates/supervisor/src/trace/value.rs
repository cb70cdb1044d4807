//! What a line shows, before it is text or JSON.

use std::fmt::Write as _;

/// One shown value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A count, an id, a size of a struct.
    Dec(u64),
    /// A file descriptor or another number that can be negative.
    Int(i64),
    /// An address, a length, a mask.
    Hex(u64),
    /// Names of the bits that are set, and the bits without a name.
    Flags(Vec<&'static str>, u64),
    /// A constant by its name.
    Name(&'static str),
    /// A string of the client's, shown in quotes.
    Quoted(String),
    /// Anything else, shown as it is.
    Plain(String),
    Struct(Vec<(&'static str, Value)>),
    /// The elements, and whether there are more than are shown.
    List(Vec<Value>, bool),
    /// Before and after the call.
    Change(Box<Value>, Box<Value>),
}

impl Value {
    /// Appends the value as strace would write it.
    pub(super) fn text(&self, line: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Dec(number) => write!(line, "{number}"),
            Self::Int(number) => write!(line, "{number}"),
            Self::Hex(number) => write!(line, "{number:#x}"),
            Self::Flags(names, rest) => {
                line.push_str(&names.join("|"));
                match (names.is_empty(), rest) {
                    (true, 0) => write!(line, "0"),
                    (true, rest) => write!(line, "{rest:#x}"),
                    (false, 0) => Ok(()),
                    (false, rest) => write!(line, "|{rest:#x}"),
                }
            }
            Self::Name(name) => write!(line, "{name}"),
            Self::Quoted(text) => write!(line, "\"{}\"", text.escape_default()),
            Self::Plain(text) => write!(line, "{text}"),
            Self::Struct(fields) => {
                line.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    let _ = write!(line, "{comma}{name}=");
                    value.text(line);
                }
                line.push('}');
                Ok(())
            }
            Self::List(values, more) => {
                line.push('[');
                for (index, value) in values.iter().enumerate() {
                    line.push_str(if index == 0 { "" } else { ", " });
                    value.text(line);
                }
                line.push_str(if *more { ", ...]" } else { "]" });
                Ok(())
            }
            Self::Change(before, after) => {
                before.text(line);
                line.push_str("=>");
                after.text(line);
                Ok(())
            }
        };
    }

    /// Appends the value as JSON. Numbers shown in hexadecimal are strings: a JSON number holds 53 bits.
    pub(super) fn json(&self, line: &mut String) {
        let _ = match self {
            Self::Dec(number) => write!(line, "{number}"),
            Self::Int(number) => write!(line, "{number}"),
            Self::Hex(number) => write!(line, "\"{number:#x}\""),
            Self::Flags(names, rest) => {
                let rest = (*rest != 0).then(|| format!("\"{rest:#x}\""));
                let all: Vec<String> =
                    names.iter().map(|name| format!("\"{name}\"")).chain(rest).collect();
                write!(line, "[{}]", all.join(","))
            }
            Self::Name(name) => write!(line, "\"{name}\""),
            Self::Quoted(text) | Self::Plain(text) => {
                quote(text, line);
                Ok(())
            }
            Self::Struct(fields) => {
                line.push('{');
                for (index, (name, value)) in fields.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    let _ = write!(line, "{comma}\"{name}\":");
                    value.json(line);
                }
                line.push('}');
                Ok(())
            }
            Self::List(values, more) => {
                line.push('[');
                for (index, value) in values.iter().enumerate() {
                    line.push_str(if index == 0 { "" } else { "," });
                    value.json(line);
                }
                line.push_str(if *more { ",\"...\"]" } else { "]" });
                Ok(())
            }
            Self::Change(before, after) => {
                line.push_str("{\"in\":");
                before.json(line);
                line.push_str(",\"out\":");
                after.json(line);
                line.push('}');
                Ok(())
            }
        };
    }
}

/// Appends `text` as a JSON string.
pub(super) fn quote(text: &str, line: &mut String) {
    line.push('"');
    for character in text.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            control if control < ' ' => {
                let _ = write!(line, "\\u{:04x}", u32::from(control));
            }
            other => line.push(other),
        }
    }
    line.push('"');
}
