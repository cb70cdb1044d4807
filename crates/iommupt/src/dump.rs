//! A page table as text: a tree for people, JSON for programs.

use alloc::vec::Vec;
use core::fmt::{self, Write};

pub use crate::table::Style;

use crate::Prot;
use crate::fields::Step;
use crate::format::{Entry, Format};
use crate::walk::{Reader, output};

/// A table about to be written; see [`Reader::dump`].
#[derive(Debug)]
pub struct Dump<'a, F: Format> {
    reader: &'a Reader<F>,
    style: Style,
}

impl<F: Format> Reader<F> {
    /// The whole table as text. Like every walk it belongs in a [`Section`](crate::Section).
    #[must_use]
    pub const fn dump(&self, style: Style) -> Dump<'_, F> {
        Dump { reader: self, style }
    }
}

/// Leaves that follow each other and differ in nothing but their address.
#[derive(Clone, Copy)]
struct Leaves {
    iova: u64,
    oa: u64,
    item: u64,
    count: u64,
    prot: Prot,
    dirty: bool,
}

impl<F: Format> fmt::Display for Dump<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.style {
            Style::Tree => {
                writeln!(f, "{} level {}", F::NAME, F::TOP_LEVEL)?;
                self.table(f, 0, F::TOP_LEVEL, 0)
            }
            Style::Json => {
                write!(f, "{{\"format\":\"{}\",\"top_level\":{}", F::NAME, F::TOP_LEVEL)?;
                self.table(f, 0, F::TOP_LEVEL, 0)?;
                f.write_char('}')
            }
        }
    }
}

impl<F: Format> Dump<'_, F> {
    fn table(&self, f: &mut fmt::Formatter<'_>, table: u64, level: u32, base: u64) -> fmt::Result {
        if self.style == Style::Json {
            f.write_str(",\"items\":[")?;
        }
        let items_lg2 = if level == F::TOP_LEVEL { F::ROOT_ITEMS_LG2 } else { F::ITEMS_LG2 };
        let mut pending: Option<Leaves> = None;
        let mut first = true;
        for slot in 0..1_usize << items_lg2 {
            let iova = base.wrapping_add((slot as u64).wrapping_shl(F::item_lg2(level)));
            let word = self.reader.arena.load_any(table, slot);
            let entry = F::decode(word, level);
            if let Entry::Leaf = entry {
                let leaf = self.leaf(word, level, iova);
                match &mut pending {
                    Some(before) if self.continues(before, &leaf) => before.count += 1,
                    _ => self.flush(f, level, &mut first, pending.replace(leaf))?,
                }
                continue;
            }
            self.flush(f, level, &mut first, pending.take())?;
            if let Entry::Table(address) = entry
                && level > 0
            {
                self.separate(f, &mut first)?;
                match self.style {
                    Style::Tree => {
                        self.indent(f, level)?;
                        writeln!(f, "{iova:#x} table {address:#x}")?;
                    }
                    Style::Json => write!(f, "{{\"iova\":{iova},\"table\":{address}")?,
                }
                self.table(f, address, level - 1, iova)?;
                if self.style == Style::Json {
                    f.write_char('}')?;
                }
            }
        }
        self.flush(f, level, &mut first, pending)?;
        if self.style == Style::Json { f.write_char(']') } else { Ok(()) }
    }

    fn leaf(&self, word: u64, level: u32, iova: u64) -> Leaves {
        Leaves {
            iova,
            oa: output::<F>(word, level, iova),
            item: 1 << F::item_lg2(level),
            count: 1,
            prot: F::prot(word, level),
            dirty: F::is_dirty(word),
        }
    }

    fn continues(&self, before: &Leaves, leaf: &Leaves) -> bool {
        before.oa + before.count * before.item == leaf.oa
            && (before.prot, before.dirty) == (leaf.prot, leaf.dirty)
    }

    fn flush(
        &self,
        f: &mut fmt::Formatter<'_>,
        level: u32,
        first: &mut bool,
        leaves: Option<Leaves>,
    ) -> fmt::Result {
        let Some(Leaves { iova, oa, item, count, prot, dirty }) = leaves else { return Ok(()) };
        self.separate(f, first)?;
        match self.style {
            Style::Tree => {
                self.indent(f, level)?;
                write!(f, "{iova:#x} -> {oa:#x} {count} x {item:#x} ")?;
                bitflags::parser::to_writer(&prot, &mut *f)?;
                writeln!(f, "{}", if dirty { " dirty" } else { "" })
            }
            Style::Json => {
                write!(
                    f,
                    "{{\"iova\":{iova},\"oa\":{oa},\"item\":{item},\"count\":{count},\"prot\":\""
                )?;
                bitflags::parser::to_writer(&prot, &mut *f)?;
                write!(f, "\",\"dirty\":{dirty}}}")
            }
        }
    }

    fn separate(&self, f: &mut fmt::Formatter<'_>, first: &mut bool) -> fmt::Result {
        if self.style == Style::Json && !core::mem::replace(first, false) {
            f.write_char(',')?;
        }
        Ok(())
    }

    fn indent(&self, f: &mut fmt::Formatter<'_>, level: u32) -> fmt::Result {
        (level..=F::TOP_LEVEL).try_for_each(|_| f.write_str("  "))
    }
}

impl<F: Format> Reader<F> {
    /// The words that a walk to `iova` passes, the root's first. None outside the aperture. Marks
    /// nothing; like every walk it belongs in a [`Section`](crate::Section).
    #[must_use]
    pub fn steps(&self, iova: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        if iova > self.last {
            return steps;
        }
        let (mut table, mut level) = (0, F::TOP_LEVEL);
        loop {
            let index = F::index(iova, level);
            let word = self.arena.load_any(table, index);
            let entry = F::decode(word, level);
            let (name, fields) = (F::entry_name(level), F::fields(word, level));
            steps.push(Step { level, name, table, index, word, entry, fields });
            match entry {
                Entry::Table(address) if level > 0 => (table, level) = (address, level - 1),
                _ => return steps,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::VtdSs;
    use crate::{Config, Counted, Iova, Pa, PageTable, Run};
    use alloc::format;
    use alloc::sync::Arc;

    fn filled() -> Arc<Reader<VtdSs<3>>> {
        let config = Config::new(Arc::new(Counted::default()));
        let (mut writer, reader) = PageTable::<VtdSs<3>>::new(config).expect("an empty table");
        let rw = Prot::READ | Prot::WRITE;
        let run = |pa, length| Run { pa: Pa(pa), length };
        writer.map(Iova(0x1000), &[run(0x5000, 0x3000), run(0x1000, 0x1000)], rw).expect("mapped");
        writer.map(Iova(0x20_0000), &[run(0x40_0000, 0x20_0000)], Prot::READ).expect("mapped");
        reader.translate(Iova(0x2000), 1, Prot::WRITE).expect("mapped");
        reader
    }

    #[test]
    fn a_table_is_a_tree_of_runs() {
        let text = format!("{}", filled().dump(Style::Tree));
        let expected = "vtdss-39 level 2
  0x0 table 0x1000
    0x0 table 0x2000
      0x1000 -> 0x5000 1 x 0x1000 READ | WRITE | EXEC
      0x2000 -> 0x6000 1 x 0x1000 READ | WRITE | EXEC dirty
      0x3000 -> 0x7000 1 x 0x1000 READ | WRITE | EXEC
      0x4000 -> 0x1000 1 x 0x1000 READ | WRITE | EXEC
    0x200000 -> 0x400000 1 x 0x200000 READ | EXEC
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_table_is_json() {
        let text = format!("{}", filled().dump(Style::Json));
        assert!(text.starts_with(
            "{\"format\":\"vtdss-39\",\"top_level\":2,\"items\":[{\"iova\":0,\"table\":4096,\"items\":[\
             {\"iova\":0,\"table\":8192,\"items\":[{\"iova\":4096,\"oa\":20480,\"item\":4096,\"count\":1,\
             \"prot\":\"READ | WRITE | EXEC\",\"dirty\":false},"
        ));
        assert!(text.ends_with("\"prot\":\"READ | EXEC\",\"dirty\":false}]}]}"));
        let (opened, closed) = (text.matches(['{', '[']).count(), text.matches(['}', ']']).count());
        assert_eq!(opened, closed);
    }
}
