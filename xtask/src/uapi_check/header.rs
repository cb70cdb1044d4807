//! What the C headers declare: the names of structs, fields, enumerators and macros.
//!
//! Reads the output of `gcc -E -dD`: comments are gone, macros are expanded, `#define` lines are
//! kept and line markers say which file a line is from. Only names are read here; sizes and values
//! are the C compiler's to tell.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};

/// The names a set of headers declares.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Struct name, or `outer.member` for an anonymous struct that is a member, to its fields.
    pub(super) structs: BTreeMap<String, Vec<Member>>,
    /// Enumerators and macros that have a value.
    pub(super) constants: BTreeSet<String>,
    /// Macros with parameters.
    pub(super) functions: BTreeSet<String>,
}

/// A field. Members of an anonymous union or struct count as fields of the enclosing struct, as
/// they do in C.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// C name.
    pub(super) name: String,
    /// An array without length, at the end.
    pub(super) flexible: bool,
}

impl Names {
    /// Reads preprocessed text, looking only at lines that come from a file whose path ends in one
    /// of `headers`.
    pub(super) fn read(preprocessed: &str, headers: &[&str]) -> Result<Self> {
        let mut names = Self::default();
        let mut ours = false;
        let mut code = String::new();
        for line in preprocessed.lines() {
            if let Some(marker) = line.strip_prefix("# ") {
                let file = marker.split('"').nth(1).unwrap_or_default();
                ours = headers.iter().any(|header| file.ends_with(header));
            } else if ours && let Some(definition) = line.strip_prefix("#define ") {
                names.define(definition);
            } else if ours && !line.starts_with('#') {
                code.push_str(line);
                code.push('\n');
            }
        }
        let tokens = tokens(&code);
        let mut rest = tokens.as_slice();
        while !rest.is_empty() {
            rest = names.declaration(rest)?;
        }
        Ok(names)
    }

    /// Takes in what follows `#define `; include guards, which have no value, are left out.
    fn define(&mut self, definition: &str) {
        let end = definition
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(definition.len());
        let (name, value) = definition.split_at(end);
        if value.starts_with('(') {
            self.functions.insert(name.to_owned());
        } else if !value.trim().is_empty() {
            self.constants.insert(name.to_owned());
        }
    }

    /// Takes in one top-level declaration and returns what follows it.
    fn declaration<'a, 'b>(&mut self, tokens: &'b [&'a str]) -> Result<&'b [&'a str]> {
        let end = statement_end(tokens)?;
        let (statement, rest) = (&tokens[..end], &tokens[end + 1..]);
        match statement {
            [] => {}
            ["enum", ..] => self.enumerators(braces(statement)?),
            ["struct", name, "{", ..] => self.structure(name, braces(statement)?)?,
            other => bail!("a declaration this reader does not know: {}", other.join(" ")),
        }
        Ok(rest)
    }

    fn enumerators(&mut self, body: &[&str]) {
        let names = split(body, ",").into_iter().filter_map(|entry| entry.first().copied());
        self.constants.extend(names.map(str::to_owned));
    }

    fn structure(&mut self, name: &str, body: &[&str]) -> Result<()> {
        let mut members = Vec::new();
        self.members(name, body, &mut members)?;
        let doubled = self.structs.insert(name.to_owned(), members);
        ensure!(doubled.is_none(), "struct {name} is declared twice");
        Ok(())
    }

    fn members(&mut self, outer: &str, body: &[&str], found: &mut Vec<Member>) -> Result<()> {
        for statement in split(body, ";") {
            let nested = matches!(statement, ["struct" | "union", "{", ..]);
            let after = if nested { after_braces(statement)? } else { statement };
            match (nested, after) {
                (_, []) if !nested => {}
                (true, []) => self.members(outer, braces(statement)?, found)?,
                (true, [name]) => {
                    self.structure(&format!("{outer}.{name}"), braces(statement)?)?;
                    found.push(Member { name: (*name).to_owned(), flexible: false });
                }
                _ => found.push(
                    plain_member(after)
                        .with_context(|| format!("in struct {outer}: {}", statement.join(" ")))?,
                ),
            }
        }
        Ok(())
    }
}

/// Reads `type name`, `type name[n]` or `type name[]`, with attributes anywhere.
fn plain_member(statement: &[&str]) -> Result<Member> {
    let mut words = Vec::new();
    let mut rest = statement;
    while let [word, tail @ ..] = rest {
        if *word == "__attribute__" {
            let length = closing(tail, "(", ")").context("an attribute has no end")?;
            rest = &tail[length + 1..];
        } else {
            words.push(*word);
            rest = tail;
        }
    }
    let bracket = words.iter().position(|word| *word == "[").unwrap_or(words.len());
    ensure!(!words.contains(&","), "two declarators in one line");
    let name = words[..bracket].last().context("a field without a name")?;
    let flexible = matches!(words[bracket..], ["[", "]"]);
    Ok(Member { name: (*name).to_owned(), flexible })
}

/// Splits C into identifiers, numbers and single punctuation characters.
fn tokens(code: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let end = if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        found.push(&rest[..end]);
        rest = rest[end..].trim_start();
    }
    found
}

/// Index of the `;` that ends the first statement.
fn statement_end(tokens: &[&str]) -> Result<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate() {
        match *token {
            "{" => depth += 1,
            "}" => depth = depth.checked_sub(1).context("a brace closes nothing")?,
            ";" if depth == 0 => return Ok(index),
            _ => {}
        }
    }
    bail!("a declaration has no end: {}", tokens.join(" "))
}

/// Index of the token that closes the bracket `tokens` starts with.
fn closing(tokens: &[&str], open: &str, close: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate() {
        if *token == open {
            depth += 1;
        } else if *token == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(index);
            }
        }
    }
    None
}

/// What stands between the first braces of a statement.
fn braces<'a, 'b>(statement: &'b [&'a str]) -> Result<&'b [&'a str]> {
    let open = statement.iter().position(|token| *token == "{").context("no braces")?;
    let length = closing(&statement[open..], "{", "}").context("a brace has no end")?;
    Ok(&statement[open + 1..open + length])
}

/// What stands after the first braces of a statement.
fn after_braces<'a, 'b>(statement: &'b [&'a str]) -> Result<&'b [&'a str]> {
    let open = statement.iter().position(|token| *token == "{").context("no braces")?;
    let length = closing(&statement[open..], "{", "}").context("a brace has no end")?;
    Ok(&statement[open + length + 1..])
}

/// Splits at `separator` outside braces and parentheses.
fn split<'a, 'b>(tokens: &'b [&'a str], separator: &str) -> Vec<&'b [&'a str]> {
    let mut depth = 0usize;
    let parts = tokens.split(move |token| {
        match *token {
            "{" | "(" => depth += 1,
            "}" | ")" => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && *token == separator
    });
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# 1 "/usr/include/linux/types.h" 1
typedef unsigned int __u32;
#define ELSEWHERE 1
# 1 "/inc/linux/thing.h" 2
#define _THING_H 
#define THING_BIG 7
#define THING_VALID(state) (state & 1)
enum { THING_A, THING_B = (1 << 3), };
struct thing {
 __u32 size; __u64 __attribute__((aligned(8))) at;
 union { __u32 in_type; __u32 out_type; };
 union { struct { __u32 x; } inner; __u8 raw[4]; };
 __u8 data[];
};
"#;

    fn member(name: &str) -> Member {
        Member { name: name.to_owned(), flexible: false }
    }

    #[test]
    fn a_header_is_read_into_names() {
        let names = Names::read(TEXT, &["linux/thing.h"]).expect("it parses");
        let constants: Vec<&str> = names.constants.iter().map(String::as_str).collect();
        assert_eq!(constants, ["THING_A", "THING_B", "THING_BIG"]);
        assert_eq!(names.functions.iter().collect::<Vec<_>>(), ["THING_VALID"]);
        assert_eq!(names.structs["thing.inner"], [member("x")]);
        let mut fields = ["size", "at", "in_type", "out_type", "inner", "raw"].map(member).to_vec();
        fields.push(Member { name: "data".to_owned(), flexible: true });
        assert_eq!(names.structs["thing"], fields);
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_not_skipped() {
        for code in
            ["typedef struct thing thing_t;", "struct thing { int a, b; };", "struct thing {"]
        {
            let text = format!("# 1 \"linux/thing.h\"\n{code}\n");
            assert!(Names::read(&text, &["linux/thing.h"]).is_err(), "{code}");
        }
    }
}
