//! VFIO groups, containers and devices in user space.
