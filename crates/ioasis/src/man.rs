//! The manual pages: what clap knows, and for `ioasis run` what a page of section 1 has besides.

use std::path::Path;

use anyhow::{Context, Result};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

/// Exit statuses of `ioasis run`; README.md has the same table.
const STATUSES: [(&str, &str); 6] = [
    ("0 to 120", "of CMD"),
    (
        "121",
        "with --fail-on-fault: CMD ended with 0, and a device could not reach memory or send an interrupt",
    ),
    ("124", "--timeout has ended the run"),
    ("125", "the run could not be set up: an option, the machine file or this host says why"),
    ("126, 127", "CMD cannot be executed; CMD does not exist"),
    ("a signal", "CMD was ended by it, and so this process ends by it"),
];

/// Signals that `ioasis run` gets.
const SIGNALS: [(&str, &str); 4] = [
    (
        "SIGINT, SIGTERM, SIGHUP, SIGQUIT",
        "go to CMD. After its end the first goes to what CMD left behind, and the second ends the run",
    ),
    ("SIGUSR1", "with --ledger: prints the ledger; else it goes to CMD"),
    (
        "SIGTSTP, SIGTTIN, SIGTTOU",
        "stop this process, as the terminal's shell expects; CMD gets its own from the terminal",
    ),
    ("every other", "goes to CMD, if a process sent it"),
];

/// What `ioasis run` does to the environment, and what it looks at.
const ENVIRONMENT: [(&str, &str); 3] = [
    (
        "SYSTEMD_DEVICE_VERIFY_SYSFS=0",
        "is set for CMD, so that libudev takes the files of /sys that a run shows",
    ),
    ("PATH", "where CMD is looked for, if it has no slash"),
    ("XDG_RUNTIME_DIR", "where the control socket is made"),
];

/// Files of a run.
const FILES: [(&str, &str); 5] = [
    (
        "/dev/iommu, /dev/vfio/vfio, /dev/vfio/N, /dev/vfio/devices/vfioN",
        "the nodes that CMD opens",
    ),
    ("/sys/bus/pci, /sys/kernel/iommu_groups, /sys/class/iommu", "the devices, groups and IOMMUs"),
    (
        "FILE.toml",
        "the machine file of --machine: tables [[iommu]] and [[device]] with the keys of --iommu and --device, and [module.NAME] with module parameters. Paths are relative to the file",
    ),
    (
        "$XDG_RUNTIME_DIR/ioasis/NAME, /run/ioasis/NAME, /tmp/ioasis-UID/NAME",
        "the control socket, by which ioasis ps, inspect, top and ctl find the run",
    ),
    (
        "/dev/fuse",
        "where it opens, fault and event queues are files as on Linux; ioasis doctor says so",
    ),
];

/// Commands, and what they show.
const EXAMPLES: [(&str, &str); 5] = [
    (
        "ioasis run --device nvme,image=disk.img -- qemu-img convert -m 1 -O raw nvme://0000:01:00.0/1 copy.img",
        "copies an image through NVMe over VFIO, as a plain user",
    ),
    (
        "ioasis run --device testdev --trace -- ./driver",
        "shows every VFIO and IOMMUFD call with its result and reason",
    ),
    (
        "ioasis run --device testdev --explain --fail-on-fault --timeout 5m -- ./test",
        "a test in CI",
    ),
    (
        "ioasis run --iommu kind=smmuv3,dirty=off --device testdev,ats,pri -- ./driver",
        "another IOMMU",
    ),
    ("ioasis run --machine machine.toml -- sh", "a shell on a machine from a file"),
];

/// Writes a page for each of `command` and its subcommands into `folder`.
pub(crate) fn write(command: clap::Command, folder: &Path) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for subcommand in command.get_subcommands() {
        let page = Man::new(subcommand.clone());
        let text = if subcommand.get_name() == "run" { run(&page) } else { whole(&page) };
        keep(&page, text, folder)?;
    }
    let page = Man::new(command);
    keep(&page, whole(&page), folder)
}

fn keep(page: &Man, text: std::io::Result<Vec<u8>>, folder: &Path) -> Result<()> {
    let written = text.and_then(|text| std::fs::write(folder.join(page.get_filename()), text));
    written.with_context(|| format!("cannot write manual pages into {}", folder.display()))
}

fn whole(page: &Man) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    Ok(text)
}

fn run(page: &Man) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    let mut roff = Roff::new();
    for (heading, list) in [
        ("EXIT STATUS", &STATUSES[..]),
        ("SIGNALS", &SIGNALS),
        ("ENVIRONMENT", &ENVIRONMENT),
        ("FILES", &FILES),
        ("EXAMPLES", &EXAMPLES),
    ] {
        roff.control("SH", [heading]);
        for (term, meaning) in list {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("ioasis(1), ioasis-ps(1), ioasis-inspect(1), ioasis-top(1), ioasis-ctl(1), ioasis-models(1), ioasis-doctor(1)")]);
    roff.to_writer(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Arguments;

    #[test]
    fn the_page_of_run_has_every_section_and_every_option() {
        let mut command = Arguments::command();
        command.build();
        let run_command = command.find_subcommand("run").expect("it is there");
        let page =
            String::from_utf8(run(&Man::new(run_command.clone())).expect("text")).expect("text");
        for section in ["EXIT STATUS", "SIGNALS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
            assert!(page.contains(section), "{section}");
        }
        for option in run_command.get_arguments().filter_map(clap::Arg::get_long) {
            let written = option.replace('-', r"\-");
            assert!(page.contains(&written), "--{option}\n{page}");
        }
    }

    #[test]
    fn the_statuses_are_those_of_the_readme() {
        let readme = include_str!("../../../README.md");
        for (status, meaning) in &STATUSES[1..4] {
            assert!(readme.contains(&format!("| {status} |")), "{status}");
            let meaning = meaning
                .trim_start_matches("with --fail-on-fault: ")
                .replace("--timeout", "`--timeout`");
            assert!(readme.contains(&meaning), "{meaning}");
        }
    }
}
