//! What a person sees of a translation: the words on the way to an IOVA.

use ioasis_iommupt::{Iova, IovaRange, Pa, Section, Step};

use super::endpoint::Endpoint;
use super::nested::Nested;
use super::ops::Walked;

/// How a device's address is translated now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslationLook {
    /// The client's own table, which comes first, when there is one.
    pub nested: Option<NestedLook>,
    /// The format of the page table.
    pub format: &'static str,
    /// What it can translate.
    pub aperture: IovaRange,
    /// The address whose walk is shown: the IOVA, or what the client's own table made of it.
    pub input: Iova,
    /// The words that a walk to it passes, the root's first.
    pub steps: Vec<Step>,
    /// Where it leads, in the machine's physical space.
    pub output: Option<Pa>,
}

/// A walk through a client's own table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NestedLook {
    /// The words read, with their addresses in the nest parent; none where a word cannot be read
    /// without waiting for whoever has its memory.
    pub words: Vec<(u64, Option<u64>)>,
    /// The address in the nest parent that the IOVA leads to.
    pub ipa: Option<u64>,
}

/// More words than any walk reads.
const WORDS_MAX: usize = 64;

impl Endpoint {
    /// How `iova` with `pasid`, 0 for none, is translated; `None` while the device is attached to
    /// nothing there. Marks nothing.
    #[must_use]
    pub fn look_up(&self, pasid: u32, iova: Iova) -> Option<TranslationLook> {
        let attachment = self.attachment(pasid)?;
        let domain = &attachment.domain;
        let users = domain.users();
        let _section = Section::enter(users);
        let nested = attachment.nested.as_deref().map(|nested| walk(nested, pasid, iova));
        let input = match &nested {
            Some(nested) => nested.ipa.map(Iova),
            None => Some(iova),
        };
        let reader = domain.reader();
        Some(TranslationLook {
            nested,
            format: reader.format_name(),
            aperture: domain.aperture(),
            input: input.unwrap_or(iova),
            steps: input.map(|input| reader.steps(input)).unwrap_or_default(),
            output: input.and_then(|input| reader.iova_to_phys(input)),
        })
    }
}

/// Walks a client's own table. Inside a section: nothing that waits is read.
fn walk(nested: &Nested, pasid: u32, iova: Iova) -> NestedLook {
    let mut words = Vec::new();
    let walked = nested.ops().walk(pasid, iova.0, &mut |address| {
        if words.len() == WORDS_MAX {
            return None;
        }
        let word = nested.word(address).filter(|word| !word.window.backing.may_wait());
        let word = word.and_then(|word| word.read());
        words.push((address, word));
        word
    });
    let ipa = match walked {
        Walked::Leaf { ipa, lg2, .. } => Some(ipa | (iova.0 & ((1 << lg2) - 1))),
        _ => None,
    };
    NestedLook { words, ipa }
}
