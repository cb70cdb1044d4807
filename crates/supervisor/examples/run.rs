//! Runs a program on a machine with the devices named: what the tests start.
//!
//! `run [--kill-on-exit] [--limit SECONDS] [--explain] [--fail-on-fault] [--root] [--fail-nth] [--trace FILE] [--device MODEL[,KEY=VALUE]...]... COMMAND...`; the devices are 0000:01:00.0 in
//! group 1, 0000:02:00.0 in group 2 and so on.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ioasis_iommufd::type1::GroupKind;
use ioasis_iommufd::{Endpoint, EndpointConfig, Group, Iommu, IommuKind};
use ioasis_pci::{Bdf, Function, Windows};
use ioasis_supervisor::trace::{Format, Trace};
use ioasis_supervisor::view::{FaultInjection, User};
use ioasis_supervisor::{Explain, Leftovers, Machine, OnFaults, RunOptions, exit_like, run, view};
use ioasis_vfio::Placement;

fn main() {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let (mut leftovers, mut limit, mut trace, mut devices) =
        (Leftovers::Await, None, None, Vec::new());
    let (mut explain, mut faults) = (Explain::Nothing, OnFaults::Pass);
    let mut view = view::Options::default();
    while let Some(option) =
        arguments.next_if(|argument| argument.to_string_lossy().starts_with("--"))
    {
        match option.to_str() {
            Some("--kill-on-exit") => leftovers = Leftovers::Kill,
            Some("--limit") => {
                let seconds = arguments.next().and_then(|text| text.to_str()?.parse().ok());
                limit = Some(Duration::from_secs(seconds.expect("seconds")));
            }
            Some("--explain") => explain = Explain::Findings,
            Some("--fail-on-fault") => faults = OnFaults::Fail,
            Some("--root") => view.user = User::Root,
            Some("--fail-nth") => view.fault_injection = FaultInjection::Present,
            Some("--trace") => {
                let path = arguments.next().expect("a file");
                trace = Some(Trace::file(Path::new(&path), Format::Text).expect("it can be made"));
            }
            Some("--device") => devices.push(arguments.next().expect("a device")),
            _ => panic!("unknown option {}", option.display()),
        }
    }
    let command: Vec<OsString> = arguments.collect();
    match run(RunOptions {
        command,
        leftovers,
        limit,
        explain,
        faults,
        rules: Vec::new(),
        machine: machine(&devices, view),
        trace,
        ledger: None,
        control: None,
    }) {
        Ok(status) => exit_like(status),
        Err(failure) => {
            eprintln!("ioasis: {failure}");
            std::process::exit(failure.status.into())
        }
    }
}

fn machine(devices: &[OsString], view: view::Options) -> Machine {
    let iommu_machine = ioasis_iommufd::Machine::new();
    let iommu = Arc::new(Iommu::new(IommuKind::Vtd));
    let mut windows = Windows::default();
    let placements = devices.iter().enumerate().map(|(index, device)| {
        let mut words = device.to_str().expect("plain text").split(',');
        let model = words.next().expect("a model");
        let options: Vec<_> = words
            .map(|word| word.split_once('=').unwrap_or((word, "on")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let model = ioasis_pci::create(model, &options).expect("a device as described");
        let number = u8::try_from(index + 1).expect("a few devices");
        let bdf = Bdf::new(0, number, 0, 0).expect("an address");
        let group = Group::new(&iommu_machine, &iommu, number.into());
        let config = EndpointConfig {
            name: bdf.to_string().into(),
            requester_id: bdf.requester_id(),
            ..EndpointConfig::default()
        };
        Placement {
            function: Function::new(bdf, model, &mut windows),
            endpoint: Endpoint::new(&group, config),
            kind: GroupKind::Iommu,
        }
    });
    let devices = ioasis_vfio::Machine::new(placements.collect());
    Machine {
        iommu: iommu_machine,
        devices,
        view,
        iommu_of: Vec::new(),
        drivers: std::collections::BTreeMap::new(),
    }
}
