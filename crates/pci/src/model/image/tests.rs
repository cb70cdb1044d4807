use super::super::nvme::image_path;
use crate::model::create;

/// What the person who wrote the options is told; the image is removed.
fn refused(options: &[(&str, &str)]) -> String {
    let options: Vec<_> =
        options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    create("nvme", &options).expect_err("refused").to_string()
}

fn made(options: &[(&str, &str)]) -> Box<dyn crate::Model> {
    let options: Vec<_> =
        options.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    create("nvme", &options).expect("good options")
}

/// A path that is removed again.
struct Path(std::path::PathBuf);

impl Path {
    fn new() -> Self {
        Self(image_path())
    }

    fn text(&self) -> &str {
        self.0.to_str().expect("a plain path")
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn size_makes_a_sparse_image_once() {
    let path = Path::new();
    drop(made(&[("image", path.text()), ("size", "1G")]));
    let metadata = std::fs::metadata(&path.0).expect("made");
    assert_eq!(metadata.len(), 1 << 30);
    assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) < 100, "sparse");
    drop(made(&[("image", path.text()), ("size", "1G")]));
    let told = refused(&[("image", path.text()), ("size", "2G")]);
    assert!(told.contains("has 1073741824 bytes, not the 2147483648"), "{told}");
}

#[test]
fn a_missing_image_is_named_with_the_way_out() {
    let path = Path::new();
    let told = refused(&[("image", path.text())]);
    assert!(told.contains(path.text()) && told.contains("size= makes it"), "{told}");
    let told = refused(&[("image", path.text()), ("size", "1M"), ("ro", "on")]);
    assert!(told.contains("ro makes none"), "{told}");
    assert!(!path.0.exists());
    assert!(refused(&[]).starts_with("nvme needs image="));
}

#[test]
fn a_size_that_is_no_multiple_of_the_block_is_refused() {
    let path = Path::new();
    std::fs::write(&path.0, vec![0; 4096 + 512]).expect("an image");
    drop(made(&[("image", path.text())]));
    let told = refused(&[("image", path.text()), ("lba", "4096")]);
    assert!(told.contains("no multiple of its block size, 4096"), "{told}");
    std::fs::write(&path.0, "").expect("an image");
    assert!(refused(&[("image", path.text())]).contains("is empty"));
}

#[test]
fn a_second_writer_is_told_the_process() {
    let path = Path::new();
    let first = made(&[("image", path.text()), ("size", "1M")]);
    let told = refused(&[("image", path.text())]);
    assert!(told.contains(&format!("in use by process {}", std::process::id())), "{told}");
    assert!(refused(&[("image", path.text()), ("ro", "on")]).contains("in use by"));
    drop(first);
    let readers = [(); 2].map(|()| made(&[("image", path.text()), ("ro", "on")]));
    assert!(refused(&[("image", path.text())]).contains("in use by"));
    drop(readers);
}

#[test]
fn a_directory_and_a_device_are_no_images() {
    assert!(refused(&[("image", "/")]).contains("image=/"));
    assert!(refused(&[("image", "/dev/null")]).contains("neither a file nor a block device"));
}

#[test]
fn bad_values_are_answered_with_the_accepted_ones() {
    let path = Path::new();
    for (option, value, accepted) in [
        ("queues", "0", "1 to 64"),
        ("queues", "65", "1 to 64"),
        ("queues", "many", "1 to 64"),
        ("lba", "1024", "512 or 4096"),
        ("size", "1000", "multiple of the block size"),
        ("size", "0", "multiple of the block size"),
        ("serial", "", "1 to 20"),
        ("serial", "123456789012345678901", "1 to 20"),
        ("serial", "\u{e9}", "ASCII"),
        ("ro", "perhaps", "on or off"),
    ] {
        let told = refused(&[("image", path.text()), (option, value)]);
        assert!(told.contains(&format!("{option}={value}")) && told.contains(accepted), "{told}");
    }
    assert!(!path.0.exists(), "nothing is made before all options are good");
}
