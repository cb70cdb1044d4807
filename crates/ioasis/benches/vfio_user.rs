//! P22: qemu-img over a disk that `ioasis serve` serves to `ioasis run --device vfio-user`, against
//! the same disk in the run itself.
//!
//! Each figure is the median of nine pairs of runs, one of each kind after the other, so that
//! whatever else the machine does meets both. The image is in the page cache. Prints one line a
//! goal.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const DISK: &str = "nvme://0000:01:00.0/1";
const IMAGE_BYTES: u64 = 256 << 20;
const PAIRS: usize = 9;

/// The folder of this run, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server of a disk.
struct Server(Child);

impl Server {
    fn start(image: &Path, socket: &Path) -> Self {
        let mut serve = Command::new(env!("CARGO_BIN_EXE_ioasis"));
        serve.args(["serve", "--device", &format!("nvme,image={}", image.display())]);
        serve.arg("--socket").arg(socket).stdin(Stdio::null());
        let server = Self(serve.spawn().expect("the server starts"));
        while !socket.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn main() {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("p22-{}", std::process::id()));
    fs::create_dir_all(&path).expect("a folder under target");
    let folder = Folder(path);
    // One image each: it is locked by who has it open.
    let images = ["direct.img", "served.img"].map(|name| folder.0.join(name));
    images.iter().for_each(|image| make_image(image));
    let socket = folder.0.join("socket");
    let server = Server::start(&images[1], &socket);
    let direct = format!("nvme,image={}", images[0].display());
    let served = format!("vfio-user,socket={}", socket.display());
    for (name, count, depth) in
        [("P22.vfio_user", "20000", "64"), ("P22.vfio_user_depth_1", "5000", "1")]
    {
        let ratios =
            (0..PAIRS).map(|_| seconds(&direct, count, depth) / seconds(&served, count, depth));
        let figure = median(ratios.collect());
        let verdict = if figure >= 0.5 { "met" } else { "missed" };
        println!("{name} {figure:.3} >=0.5 {verdict}");
    }
    drop(server);
}

/// `qemu-img bench` prints how long its requests took, start and end of the program not included.
fn seconds(device: &str, count: &str, depth: &str) -> f64 {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ioasis"));
    command.args(["run", "--device", device, "--", "qemu-img", "bench", "-c", count, "-d", depth]);
    command.args(["-s", "4096", "-f", "raw", DISK]).stdin(Stdio::null());
    let output = command.output().expect("the program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{words}", output.status);
    let seconds = text.split("Run completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    seconds.and_then(|seconds| seconds.parse().ok()).expect("qemu-img says how long it took")
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// Bytes that do not compress and are in the page cache.
fn make_image(path: &Path) {
    let mut random = File::open("/dev/urandom").expect("random bytes").take(IMAGE_BYTES);
    io::copy(&mut random, &mut File::create(path).expect("an image")).expect("written");
}
