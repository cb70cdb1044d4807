//! Asks the C compiler: one generated program prints the value of every expression, a line each.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::layout::Value;
use crate::process;

/// A C expression and what it must yield.
pub(super) struct Question {
    /// Our name for it, as a person reads it.
    pub(super) what: String,
    /// The expression.
    pub(super) expression: String,
    /// What `uapi` says.
    pub(super) ours: Value,
}

/// Where the headers are.
pub(super) struct Headers {
    /// Folders searched, in order, before the system's.
    pub(super) search: Vec<PathBuf>,
    /// Files to include: as written between the angle brackets, or an absolute path.
    pub(super) include: Vec<String>,
}

impl Headers {
    fn includes(&self) -> String {
        let line = |name: &String| {
            if Path::new(name).is_absolute() {
                format!("#include \"{name}\"\n")
            } else {
                format!("#include <{name}>\n")
            }
        };
        self.include.iter().map(line).collect()
    }

    fn compiler(&self) -> Command {
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-w"]);
        for folder in &self.search {
            gcc.arg("-isystem").arg(folder);
        }
        gcc
    }

    /// The headers after preprocessing, with `#define` lines and line markers.
    pub(super) fn preprocess(&self, work: &Path) -> Result<String> {
        let source = work.join("names.c");
        fs::write(&source, self.includes())?;
        process::output(self.compiler().args(["-E", "-dD"]).arg(&source))
    }

    /// Asks every question; returns those the C compiler answers otherwise, with its answer.
    pub(super) fn ask<'q>(
        &self,
        work: &Path,
        questions: &'q [Question],
    ) -> Result<Vec<(&'q Question, String)>> {
        let mut program = self.includes();
        program.push_str("#include <stddef.h>\n#include <stdio.h>\n");
        program.push_str("\nint main(void)\n{\n");
        for question in questions {
            let (format, cast) = match question.ours {
                Value::Number { .. } => ("%llu", "(unsigned long long)"),
                Value::Text(_) => ("%s", ""),
            };
            writeln!(program, "\tprintf(\"{format}\\n\", {cast}({}));", question.expression)?;
        }
        program.push_str("\treturn 0;\n}\n");
        let (source, binary) = (work.join("layout.c"), work.join("layout"));
        fs::write(&source, program)?;
        process::run(self.compiler().arg("-o").arg(&binary).arg(&source))?;
        let answers = process::output(&mut Command::new(&binary))?;

        let answers: Vec<&str> = answers.lines().collect();
        ensure!(
            answers.len() == questions.len(),
            "the program answered another number of questions"
        );
        let pairs = questions.iter().zip(answers);
        let differing = pairs.filter(|(question, answer)| !agrees(&question.ours, answer));
        Ok(differing.map(|(question, answer)| (question, answer.to_owned())).collect())
    }
}

/// Whether C's answer is our value. C's integers are wider than ours: beyond our width it must be
/// zeros, or ones where our top bit is set, which is what C makes of `-1` and `1 << 31`.
fn agrees(ours: &Value, answer: &str) -> bool {
    match *ours {
        Value::Text(text) => answer == text,
        Value::Number { value, bits } => {
            let Ok(theirs) = answer.parse::<u64>() else { return false };
            let mask = u64::MAX >> (u64::BITS - bits);
            let negative = value >> (bits - 1) == 1;
            theirs == value || (negative && theirs == value | !mask)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_agrees_when_c_extends_it() {
        let number = |value, bits| Value::Number { value, bits };
        assert!(agrees(&number(7, 32), "7"));
        assert!(
            agrees(&number(0x8000_0000, 32), "18446744071562067968"),
            "1 << 31 is negative in C"
        );
        assert!(agrees(&number(0x8000_0000, 32), "2147483648"));
        assert!(!agrees(&number(7, 32), "4294967303"), "a bit above our width is not lost");
        assert!(!agrees(&number(7, 32), ""));
        assert!(agrees(&Value::Text("vfio-pci"), "vfio-pci"));
        assert!(!agrees(&Value::Text("vfio-pci"), "vfio-ap"));
    }
}
