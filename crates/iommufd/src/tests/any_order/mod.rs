//! Every command in any order, on a machine with two opens of `/dev/iommu`, a container and four
//! devices behind two IOMMUs of any kind, beside a model made of byte arrays.
//!
//! After each step are compared: the errno and the reply; objects, with how many hold each; areas,
//! ranges and alignment of every IOAS; who pays for how much; and at every page what every device
//! reads there, under three PASIDs, or at every other page that it reads nothing. Some steps are
//! first made to fail at each of their fallible points: nothing may have changed then.

mod begin;
mod calls;
mod check;
mod choose;
mod containers;
mod destroy;
mod dma;
mod fail;
mod hwpts;
mod memories;
mod model;
mod perform;
mod spaces;
mod step;
mod system;

use ioasis_uapi::Errno;
use proptest::prelude::*;

use crate::{IommuKind, inject};

use begin::{BEGINNINGS, beginning};
use choose::Chooser;
use model::Model;
use perform::errno;
use step::{Call, Step};
use system::System;

const KINDS: [IommuKind; 4] = [IommuKind::Vtd, IommuKind::Amd, IommuKind::Smmuv3, IommuKind::Riscv];

/// Fails each point of a step in turn; the answer when none is left to fail.
fn with_failures(
    system: &mut System,
    model: &mut Model,
    step: &Step,
    turn: u64,
) -> Result<Result<step::Reply, Errno>, TestCaseError> {
    let apply = |system: &mut System| errno(system.apply(step));
    let failed = |system: &mut System, nth, answer| {
        prop_assert_eq!(answer, Err(Errno::ENOMEM), "point {} of {:?}", nth, step);
        system.check(model, turn).map_err(|error| {
            TestCaseError::fail(format!("{error}, after point {nth} of {step:?} failed"))
        })
    };
    inject::fail_each(system, apply, failed).map(|(answer, _)| answer)
}

/// Runs the steps that `chunks` choose; a failure names the steps so far.
fn run(kinds: [usize; 2], begin: usize, chunks: &[Vec<u8>]) -> Result<(), TestCaseError> {
    let mut taken = Vec::new();
    run_noting(kinds, begin, chunks, &mut taken).map_err(|error| {
        let taken: String = taken.iter().map(|step| format!("\n{step:?}")).collect();
        TestCaseError::fail(format!("{error}, after{taken}"))
    })
}

fn run_noting(
    kinds: [usize; 2],
    begin: usize,
    chunks: &[Vec<u8>],
    taken: &mut Vec<Step>,
) -> Result<(), TestCaseError> {
    let kinds = kinds.map(|kind| KINDS[kind]);
    let mut system = System::new(kinds);
    let memories = system.memories.clone();
    let mut model = Model::new(kinds, memories::beginning());
    let mut steps = beginning(begin, kinds[0]).into_iter();
    let mut chunks = chunks.iter();
    let mut turn = 0;
    loop {
        turn += 1;
        let (step, fails) = if let Some(step) = steps.next() {
            (step, false)
        } else {
            let Some(chunk) = chunks.next() else { break };
            (Chooser(&chunk[1..]).step(&model), chunk[0] % 4 == 1)
        };
        taken.push(step.clone());
        let answer = if fails && can_fail(&step) {
            with_failures(&mut system, &mut model, &step, turn)?
        } else {
            errno(system.apply(&step))
        };
        let before = answer.is_err().then(|| model.clone());
        let expected = model.apply(&step, &answer);
        if let Some(before) = before {
            // What a refused call does all the same: an unmap keeps what it removed, and a write
            // what it wrote.
            model.restore_after_refusal(&step, before);
        }
        prop_assert_eq!(answer, expected, "step {} of {:?}: {:?}", turn, kinds, step);
        system.check(&mut model, turn)?;
        system.check_write(&mut model, turn)?;
    }
    memories.check(&model.bytes)?;
    system.close(turn)?;
    memories.keep(&model.bytes);
    Ok(())
}

/// Steps of which every failure undoes everything: those that stop half way are not among them, and
/// a compatible unmap by version 1 keeps the first of its two cuts when the second fails
/// (`iopt_cut_iova`).
fn can_fail(step: &Step) -> bool {
    !matches!(
        step,
        Step::AskedDma { .. }
            | Step::Access { what: step::OnAccess::Write { .. }, .. }
            | Step::Call { call: Call::CompatUnmap { .. }, .. }
    )
}

impl Model {
    fn restore_after_refusal(&mut self, step: &Step, before: Self) {
        let partial = matches!(
            step,
            Step::Call { call: Call::Unmap { .. } | Call::CompatUnmap { .. }, .. }
                | Step::Type1(step::Type1::Unmap { .. })
                | Step::Access { .. }
        );
        if !partial {
            *self = before;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_command_in_any_order_does_what_byte_arrays_would(
        kinds in [0..4_usize, 0..4_usize],
        begin in 0..BEGINNINGS,
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 12..24), 1..60),
    ) {
        run(kinds, begin, &chunks)?;
    }
}
