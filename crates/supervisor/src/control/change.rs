//! What changes a run that goes on: devices that are removed, and errors that they report.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ioasis_pci::Heard;
use ioasis_uapi::Error;
use ioasis_vfio::Device;
use serde_json::{Value, json};

use super::answer::number;
use crate::serve::Server;

/// How long an orderly removal waits for the device's user, at most.
const REMOVAL_MAX: u64 = 600;

/// Does what `ask` says; `None` for something that nobody knows.
pub(super) fn change(
    ask: &str,
    request: &Value,
    fds: Vec<OwnedFd>,
    server: &Arc<Server>,
) -> Option<Result<Value, String>> {
    drop(fds);
    let act = match ask {
        "surprise-remove" => surprise_remove,
        "aer" => aer,
        "device-remove" => device_remove,
        _ => return None,
    };
    let done = device(request, server).and_then(|device| act(server, &device, request));
    if done.is_ok() && ask != "aer" {
        // Its files go after it, as on Linux: who finds them meanwhile gets ENODEV.
        if let Err(error) = server.show() {
            return Some(Err(format!("it is gone, and still shown: {}", error.why)));
        }
    }
    Some(done)
}

/// The device that a request names.
pub(super) fn device(request: &Value, server: &Server) -> Result<Arc<Device>, String> {
    let devices = server.machine().devices.devices();
    let name =
        request["device"].as_str().ok_or("a device is an address, 0000:01:00.0 for instance")?;
    let found = devices.iter().find(|device| device.name() == name);
    let known = || devices.iter().map(|device| device.name()).collect::<Vec<_>>().join(", ");
    found.map(Arc::clone).ok_or_else(|| match devices.len() {
        0 => format!("there is no device {name}; the run has none"),
        _ => format!("there is no device {name}; there are {}", known()),
    })
}

fn refused(device: &Device, error: &Error) -> String {
    format!("{}: {}", device.name(), error.why)
}

/// The device is pulled out.
fn surprise_remove(_: &Server, device: &Arc<Device>, _: &Value) -> Result<Value, String> {
    let open = device.look();
    device.pull().map_err(|error| refused(device, &error))?;
    Ok(json!({ "device": device.name(), "was_open": open.open }))
}

/// The device reports an uncorrectable error that is not fatal.
fn aer(_: &Server, device: &Arc<Device>, _: &Value) -> Result<Value, String> {
    match device.report_error() {
        Ok(heard) => Ok(json!({ "device": device.name(), "heard": heard == Heard::Yes })),
        Err(error) => Err(refused(device, &error)),
    }
}

/// The device is asked for, and goes once nobody has it open, or when the time is up.
fn device_remove(server: &Server, device: &Arc<Device>, request: &Value) -> Result<Value, String> {
    let seconds = match &request["seconds"] {
        Value::Null => 30,
        value => number(value)
            .filter(|seconds| *seconds <= REMOVAL_MAX)
            .ok_or_else(|| format!("a removal waits at most {REMOVAL_MAX} seconds"))?,
    };
    device.begin_removal().map_err(|error| refused(device, &error))?;
    // Its node goes at once, as on Linux; where it cannot, who opens it gets ENODEV.
    let _still_shown = server.show();
    let released = device.end_removal(Duration::from_secs(seconds));
    Ok(json!({ "device": device.name(), "released": released }))
}
