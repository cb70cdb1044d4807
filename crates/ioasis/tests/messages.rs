//! What a person is told who got the command line or a machine file wrong: the place, the value, what is accepted. Exact, since a
//! message is read more often than the code that makes it.

use std::path::Path;
use std::process::Command;

/// A folder with an image that is one and one that is none.
fn folder(test: &str) -> std::path::PathBuf {
    let name = format!("messages-{test}-{}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).expect("a folder under target");
    for (name, length) in [("d.img", 1 << 20), ("odd.img", 100)] {
        let file = std::fs::File::create(folder.join(name)).expect("a file");
        file.set_len(length).expect("its length");
    }
    folder
}

/// The exit status of `ioasis` and the first line that it says.
fn said(folder: &Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ioasis"))
        .args(words)
        .current_dir(folder)
        .output()
        .expect("ioasis starts");
    assert!(output.stdout.is_empty(), "{words:?} runs: {output:?}");
    let text = String::from_utf8(output.stderr).expect("text");
    let line = text.lines().next().unwrap_or_default();
    (output.status.code(), line.to_owned())
}

const EVERY: &str = "every device has address, group, iommu, pasid_bits, ats, driver, pri, numvfs";
const IOMMU: &str = "its keys are kind, dirty, coherence, nesting, ats, pri, isolated_msi, cmdqv, repeat_invalidations, pasid_bits, page_sizes, aperture, reserved, window, ddw, levels, eeh";

/// Command lines, words parted by one blank, and what is said of them.
fn lines() -> Vec<(&'static str, String)> {
    let fixed = [
        ("rnu", "error: unrecognized subcommand 'rnu'"),
        ("run", "error: the following required arguments were not provided:"),
        (
            "run --device",
            "error: a value is required for '--device <MODEL[,key=value]...>' but none was supplied",
        ),
        ("run --device testdev --", "error: the following required arguments were not provided:"),
        ("run --devce testdev -- true", "error: unexpected argument '--devce' found"),
        (
            "run --name 12 -- true",
            "ioasis: --name 12: a name of digits alone would be taken for a process",
        ),
        (
            "run --name a/b -- true",
            "ioasis: --name \"a/b\": a name is of letters, digits and . _ -, at most 64, and begins with a letter or a digit",
        ),
        (
            "run --name ioas -- true",
            "ioasis: --name ioas: the word stands for something in `ioasis inspect` and `ioasis ctl`; take another",
        ),
        (
            "run --device nvme -- true",
            "ioasis: --device \"nvme\": nvme needs image=, the raw image file behind the namespace: the path of a file or block device",
        ),
        (
            "run --device nvme,image=none.img -- true",
            "ioasis: --device \"nvme,image=none.img\": nvme: image=none.img does not exist; size= makes it",
        ),
        (
            "run --device nvme,image=/ -- true",
            "ioasis: --device \"nvme,image=/\": nvme: image=/: Is a directory (os error 21)",
        ),
        (
            "run --device nvme,image=odd.img -- true",
            "ioasis: --device \"nvme,image=odd.img\": nvme: image=odd.img has 100 bytes, which is no multiple of its block size, 512",
        ),
        (
            "run --device nvme,image=d.img,queues=0 -- true",
            "ioasis: --device \"nvme,image=d.img,queues=0\": nvme: queues=0 is not accepted; queues is a number from 1 to 64",
        ),
        (
            "run --device nvme,image=d.img,ro=maybe -- true",
            "ioasis: --device \"nvme,image=d.img,ro=maybe\": nvme: ro=maybe is not accepted; ro is on or off",
        ),
        (
            "run --device nvme,image=d.img,ro=1 -- true",
            "ioasis: --device \"nvme,image=d.img,ro=1\": nvme: ro=1 is not accepted; ro is on or off",
        ),
        (
            "run --device nvme,image=d.img,image=odd.img -- true",
            "ioasis: --device \"nvme,image=d.img,image=odd.img\": image is given twice",
        ),
        (
            "run --device nvme,image=d.img --device nvme,image=./d.img,ro -- true",
            "ioasis: --device \"nvme,image=./d.img,ro\": the image is that of another device of this machine, --device \"nvme,image=d.img\"; give both ro, or one a copy",
        ),
        (
            "run --device ,image=x -- true",
            "ioasis: --device \",image=x\" names no model; `ioasis models` lists them",
        ),
        (
            "run --device image=d.img -- true",
            "ioasis: --device \"image=d.img\" begins with a model, as in nvme,image=d.img; `ioasis models` lists them",
        ),
        (
            "run --device testdev,=x -- true",
            "ioasis: --device \"testdev,=x\": there is an entry without a key between its commas",
        ),
        (
            "run --device testdev, -- true",
            "ioasis: --device \"testdev,\": there is an entry without a key between its commas",
        ),
        (
            "run --device testdev,address=1 -- true",
            "ioasis: --device \"testdev,address=1\": address=\"1\" is not an address as 0000:01:00.0: a PCI address is written DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, like 0000:01:00.0",
        ),
        (
            "run --device testdev,address=01:00.0 --device testdev,address=0000:01:00.0 -- true",
            "ioasis: --device \"testdev,address=0000:01:00.0\": 0000:01:00.0 is the address of another device already, --device \"testdev,address=01:00.0\"",
        ),
        (
            "run --device testdev,group=x -- true",
            "ioasis: --device \"testdev,group=x\": group=\"x\" is not a number: invalid digit found in string",
        ),
        (
            "run --device testdev,group=1 --device testdev,group=1,iommu=none -- true",
            "ioasis: group 1 has devices of different kinds: all of a group are behind an IOMMU, or have iommu=none, or iommu=emulated",
        ),
        (
            "run --device testdev,iommu=3 -- true",
            "ioasis: --device \"testdev,iommu=3\": iommu 3 does not exist, the machine has 1, counted from 0",
        ),
        (
            "run --device testdev,iommu=off -- true",
            "ioasis: --device \"testdev,iommu=off\": iommu=\"off\" is not a number, none or emulated: invalid digit found in string",
        ),
        (
            "run --device testdev,ats=1 -- true",
            "ioasis: --device \"testdev,ats=1\": ats=\"1\" is not on or off: it is neither",
        ),
        (
            "run --device testdev,pri -- true",
            "ioasis: --device \"testdev,pri\": pri=on needs ats=on",
        ),
        (
            "run --iommu ats=off --device testdev,ats -- true",
            "ioasis: --device \"testdev,ats\": the device has ats and iommu 0 has none",
        ),
        (
            "run --iommu kind=vdt -- true",
            "ioasis: --iommu \"kind=vdt\": kind=\"vdt\" is not vtd, amd, smmuv3, riscv or spapr: no such kind",
        ),
        (
            "run --iommu kind=riscv,aperture=0-0xffffffffffff -- true",
            "ioasis: --iommu \"kind=riscv,aperture=0-0xffffffffffff\": aperture=\"0-0xffffffffffff\" is not FIRST-LAST in whole pages, as in 0x0-0xffffffff: the kind translates addresses of 47 bits",
        ),
        (
            "run --iommu reserved=0-0xfff:msi+0x800-0x1fff:direct -- true",
            "ioasis: --iommu \"reserved=0-0xfff:msi+0x800-0x1fff:direct\": the reserved ranges 0x0-0xfff and 0x800-0x1fff overlap",
        ),
        (
            "run --iommu page_sizes=3K -- true",
            "ioasis: --iommu \"page_sizes=3K\": page_sizes=\"3K\" is not 4K and other leaf sizes of the kind, joined by +, as in 4K+2M: \"3K\" is no power of two",
        ),
        (
            "run --iommu dirty=on,dirty=on -- true",
            "ioasis: --iommu \"dirty=on,dirty=on\": dirty is given twice",
        ),
        ("run --container typ1 -- true", "error: invalid value 'typ1' for '--container <WHO>'"),
        (
            "run --timeout 1d -- true",
            "error: invalid value '1d' for '--timeout <TIME>': a unit is ms, s, m or h, as in 90s",
        ),
        (
            "run --timeout -- true",
            "error: a value is required for '--timeout <TIME>' but none was supplied",
        ),
        (
            "run --trace t --device testdev -- true",
            "ioasis: --trace takes its file behind an equals sign: --trace=t; without one it writes to standard error",
        ),
        (
            "run --trace=/nonexistent/t -- true",
            "ioasis: cannot write the trace /nonexistent/t: ENOENT: the file cannot be written",
        ),
        (
            "run --ledger=/ -- true",
            "ioasis: cannot write the ledger /: EISDIR: the file cannot be written",
        ),
        (
            "run --machine none.toml -- true",
            "ioasis: cannot read the machine file none.toml: No such file or directory (os error 2)",
        ),
        (
            "man /nonexistent",
            "ioasis: cannot write manual pages into /nonexistent: No such file or directory (os error 2)",
        ),
        ("completions tcsh", "error: invalid value 'tcsh' for '<SHELL>'"),
        (
            "trace -e maps -- true",
            "error: invalid value 'maps' for '-e <CALL,..>': \"maps\" is no class and no call: classes are map, irq, config, reset, fault, event, open, failed; calls are ioctl, openat, pread, pwrite, mmap, read, write, and requests as VFIO_IOMMU_MAP_DMA",
        ),
        ("trace --trace=x -- true", "ioasis: `ioasis trace` traces already: -o names the file"),
        ("models nvme testdev", "error: unexpected argument 'testdev' found"),
        ("doctor --jsn", "error: unexpected argument '--jsn' found"),
    ];
    let mut lines: Vec<_> =
        fixed.into_iter().map(|(words, said)| (words, said.to_owned())).collect();
    lines.extend([
        (
            "run --device nvme,imgae=x -- true",
            format!(
                "ioasis: --device \"nvme,imgae=x\": nvme has no option \"imgae\" (did you mean image?); its options are {}, and {EVERY}",
                options_of("nvme")
            ),
        ),
        (
            "run --device testdev,adress=00:01.0 -- true",
            format!(
                "ioasis: --device \"testdev,adress=00:01.0\": testdev has no option \"adress\" (did you mean address?); its options are {}, and {EVERY}",
                options_of("testdev")
            ),
        ),
        (
            "run --device testdv -- true",
            format!(
                "ioasis: --device \"testdv\": no device model is called \"testdv\" (did you mean testdev?); there are {}",
                models()
            ),
        ),
        (
            "models nmve",
            format!("ioasis: no device model is called \"nmve\" (did you mean nvme?); there are {}", models()),
        ),
        (
            "run --iommu vtd -- true",
            format!("ioasis: --iommu \"vtd\": an IOMMU has no key \"vtd\"; {IOMMU}"),
        ),
        (
            "run --iommu drity=off -- true",
            format!(
                "ioasis: --iommu \"drity=off\": an IOMMU has no key \"drity\" (did you mean dirty?); {IOMMU}"
            ),
        ),
    ]);
    lines
}

fn models() -> String {
    let models = ioasis_pci::models().iter().map(|model| model.name);
    models.collect::<Vec<_>>().join(", ")
}

fn options_of(model: &str) -> String {
    let info = ioasis_pci::models().iter().find(|info| info.name == model).expect("a model");
    info.options.iter().map(|option| option.name).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_command_line_that_is_wrong_is_told_what_is_right() {
    let folder = folder("lines");
    let wrong = lines().into_iter().filter_map(|(line, expected)| {
        let words: Vec<_> = line.split(' ').collect();
        let told = said(&folder, &words);
        (told != (Some(125), expected)).then_some((line, told))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), []);
    std::fs::remove_dir_all(folder).expect("ours");
}

#[test]
fn a_program_that_cannot_run_has_the_status_of_the_shells() {
    let folder = folder("programs");
    for (program, status, why) in [
        ("/nonexistent", 127, "No such file or directory (os error 2)"),
        ("/etc/passwd", 126, "Permission denied (os error 13)"),
    ] {
        let expected = format!("ioasis: cannot execute {program}: {why}");
        assert_eq!(said(&folder, &["run", "--", program]), (Some(status), expected));
    }
    std::fs::remove_dir_all(folder).expect("ours");
}

/// Machine files, and what is said of each behind `ioasis: m.toml:`.
fn files() -> Vec<(&'static str, String)> {
    let fixed = [
        ("x", "1: key with no value, expected `=`"),
        ("[[device]]\nmodel = nvme\n", "2: invalid float, expected `nan`"),
        ("[[device]\nmodel = \"nvme\"\n", "1: unclosed array table, expected `]`"),
        ("[iommu]\n[iommu]\n", "2: duplicate key"),
        (
            "[machine]\n",
            "1: a machine file has no \"machine\"; it has iommu, device, module and linux",
        ),
        (
            "\n[[devices]]\n",
            "2: a machine file has no \"devices\" (did you mean device?); it has iommu, device, module and linux",
        ),
        ("iommu = 3\n", "1: iommu is written [iommu] or [[iommu]], found integer"),
        ("iommu = [1]\n", "1: expected a table, [iommu] or [[iommu]]"),
        ("[device]\nmodel = \"nvme\"\n", "1: device is written [[device]], found table"),
        ("[[device]]\nimage = \"d.img\"\n", "1: a device has no model; `ioasis models` lists them"),
        (
            "[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\nqueues = 1.5\n",
            "4: queues: expected text, a number, a boolean or a list, found float",
        ),
        (
            "[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\nqueues = 0b11\n",
            "4: queues: a number is decimal or begins with 0x, found 0b11",
        ),
        (
            "[[device]]\nmodel = \"testdev\"\naddress = \"00:20.0\"\n",
            "3: address=\"00:20.0\" is not an address as 0000:01:00.0: a PCI address is written DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, like 0000:01:00.0",
        ),
        (
            "[[device]]\nmodel = \"testdev\"\ngroup = -1\n",
            "3: group=\"-1\" is not a number: invalid digit found in string",
        ),
        (
            "[[device]]\nmodel = \"testdev\"\n\npasid_bits = 21\n",
            "4: pasid_bits=\"21\" is not a number from 0 to 20: a PASID has at most 20 bits",
        ),
        (
            "[[device]]\nmodel = \"testdev\"\nats = \"yes\"\n",
            "3: ats=\"yes\" is not on or off: it is neither",
        ),
        ("[[device]]\nmodel = \"testdev\"\npri = true\n", "1: pri=on needs ats=on"),
        (
            "[[device]]\nmodel = \"testdev\"\niommu = 1\n",
            "1: iommu 1 does not exist, the machine has 1, counted from 0",
        ),
        (
            "[[device]]\nmodel = \"testdev\"\naddress = \"01:00.0\"\n[[device]]\nmodel = \"testdev\"\naddress = \"01:00.0\"\n",
            "4: 0000:01:00.0 is the address of another device already, m.toml:1",
        ),
        (
            "[[device]]\nmodel = \"nvme\"\nimage = \"none.img\"\n",
            "1: nvme: image=none.img does not exist; size= makes it",
        ),
        (
            "[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\n[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\n",
            "6: the image is that of another device of this machine, m.toml:3; give both ro, or one a copy",
        ),
        (
            "[iommu]\nkind = \"intel\"\n",
            "2: kind=\"intel\" is not vtd, amd, smmuv3, riscv or spapr: no such kind",
        ),
        (
            "[iommu]\n# no pages of 4K\npage_sizes = [\"2M\"]\n",
            "3: page_sizes=\"2M\" is not 4K and other leaf sizes of the kind, joined by +, as in 4K+2M: pages of 4K are needed",
        ),
        (
            "[iommu]\naperture = \"5\"\n",
            "2: aperture=\"5\" is not FIRST-LAST in whole pages, as in 0x0-0xffffffff: there is no - in it",
        ),
        (
            "[iommu]\nreserved = [\"0x0-0xfff:msi\", \"0x0-0xfff:direct\"]\n",
            "2: the reserved ranges 0x0-0xfff and 0x0-0xfff overlap",
        ),
        (
            "[iommu]\nreserved = [\"0x0-0xfff:mis\"]\n",
            "2: reserved=\"0x0-0xfff:mis\" is not FIRST-LAST:KIND, joined by +, or none; KIND is msi, sw-msi, reserved, direct or direct-relaxable: \"mis\" is no kind of region",
        ),
        ("module = 1\n", "1: expected [module.NAME]"),
        ("[module]\nvfio = 1\n", "1: expected [module.NAME]"),
        (
            "[module.vfio_iommu_type1]\ndma_entry_limit = \"x\"\n",
            "2: vfio_iommu_type1.dma_entry_limit cannot be \"x\": EINVAL: the parameter is a number",
        ),
        (
            "[module.vfio]\nenable_unsafe_noiommu = true\n",
            "2: there is no parameter vfio.enable_unsafe_noiommu (did you mean vfio.enable_unsafe_noiommu_mode?); there are vfio_iommu_type1.allow_unsafe_interrupts, vfio_iommu_type1.dma_entry_limit, vfio_iommu_type1.disable_hugepages, vfio.enable_unsafe_noiommu_mode, iommufd.allow_unsafe_interrupts",
        ),
    ];
    let mut files: Vec<_> = fixed.into_iter().map(|(text, said)| (text, said.to_owned())).collect();
    files.extend([
        (
            "[[iommu]]\n[[iommu]]\nsize = 1\n",
            format!("3: an IOMMU has no key \"size\"; {IOMMU}"),
        ),
        (
            "[[device]]\nmodel = \"nvme\"\nimage = \"d.img\"\nserail = \"x\"\n",
            format!(
                "4: nvme has no option \"serail\" (did you mean serial?); its options are {}, and {EVERY}",
                options_of("nvme")
            ),
        ),
        (
            "[[device]]\nmodel = \"nmve\"\n",
            format!(
                "2: no device model is called \"nmve\" (did you mean nvme?); there are {}",
                models()
            ),
        ),
    ]);
    files
}

#[test]
fn a_machine_file_that_is_wrong_is_told_where_and_what_is_right() {
    let folder = folder("files");
    let wrong = files().into_iter().filter_map(|(text, expected)| {
        std::fs::write(folder.join("m.toml"), text).expect("a file");
        let told = said(&folder, &["run", "--machine", "m.toml", "--", "true"]);
        (told != (Some(125), format!("ioasis: m.toml:{expected}"))).then_some((text, told))
    });
    assert_eq!(wrong.collect::<Vec<_>>(), []);
    std::fs::remove_dir_all(folder).expect("ours");
}
