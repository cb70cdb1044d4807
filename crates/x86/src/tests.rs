use super::*;

/// One page of trapped memory at `TRAPPED`, and one of plain memory below it.
const PLAIN: u64 = 0x1000;
const TRAPPED: u64 = 0x2000;

#[derive(Debug)]
struct Device {
    bytes: Vec<u8>,
    /// Address and length of each access, in their order.
    seen: Vec<(char, u64, usize)>,
}

#[derive(Debug)]
struct Plain(Vec<u8>);

impl Bus for Device {
    fn is_trapped(&self, address: u64) -> bool {
        (TRAPPED..TRAPPED + PAGE).contains(&address)
    }

    fn load(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.seen.push(('l', address, bytes.len()));
        let at = usize::try_from(address - TRAPPED).unwrap();
        bytes.copy_from_slice(&self.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn store(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.seen.push(('s', address, bytes.len()));
        let at = usize::try_from(address - TRAPPED).unwrap();
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

impl Memory for Plain {
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let at = usize::try_from(address.wrapping_sub(PLAIN)).unwrap();
        let end = at.saturating_add(bytes.len());
        bytes.copy_from_slice(self.0.get(at..end).ok_or(Fault { address })?);
        Ok(())
    }

    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        let at = usize::try_from(address.wrapping_sub(PLAIN)).unwrap();
        let end = at.saturating_add(bytes.len());
        self.0.get_mut(at..end).ok_or(Fault { address })?.copy_from_slice(bytes);
        Ok(())
    }
}

struct Rig {
    state: State,
    device: Device,
    plain: Plain,
}

impl Rig {
    fn new() -> Self {
        let bytes = |first: u8| (0..PAGE).map(|at| (at % 251) as u8 ^ first).collect();
        let mut state = State { ip: 0x40_0000, flags: 0x202, ..State::default() };
        state.vectors = vec![[0xee; VECTOR]; 32];
        let device = Device { bytes: bytes(0x5a), seen: Vec::new() };
        Self { state, device, plain: Plain(bytes(0)) }
    }

    fn run(&mut self, code: &[u8]) -> Result<Done, Failure> {
        let instruction = Instruction::decode(code, self.state.ip, Mode::Bits64)?;
        instruction.execute(&mut self.state, &mut self.device, &mut self.plain)
    }
}

#[test]
fn a_store_is_one_access_and_a_change_is_a_load_and_a_store() {
    let mut rig = Rig::new();
    rig.state.general[0] = 0x1122_3344_5566_7788;
    rig.state.general[7] = TRAPPED + 8;
    // mov [rdi], eax
    assert_eq!(rig.run(&[0x89, 0x07]), Ok(Done::Whole));
    // lock or dword [rdi], 1
    assert_eq!(rig.run(&[0xf0, 0x83, 0x0f, 0x01]), Ok(Done::Whole));
    let at = TRAPPED + 8;
    assert_eq!(rig.device.seen, [('s', at, 4), ('l', at, 4), ('s', at, 4)]);
    assert_eq!(rig.device.bytes[8..12], 0x5566_7789_u32.to_le_bytes());
    assert_eq!(rig.state.ip, 0x40_0006);
}

#[test]
fn an_access_across_the_end_of_a_page_is_split_there() {
    let mut rig = Rig::new();
    rig.state.general[0] = 0x1122_3344_5566_7788;
    rig.state.general[7] = TRAPPED - 3;
    // mov [rdi], rax
    assert_eq!(rig.run(&[0x48, 0x89, 0x07]), Ok(Done::Whole));
    assert_eq!(rig.device.seen, [('s', TRAPPED, 5)]);
    assert_eq!(rig.device.bytes[..5], [0x55, 0x44, 0x33, 0x22, 0x11]);
    assert_eq!(rig.plain.0[4093..], [0x88, 0x77, 0x66]);
}

#[test]
fn an_access_that_faults_in_its_plain_half_reaches_no_device_and_changes_no_register() {
    let mut rig = Rig::new();
    rig.state.general[7] = TRAPPED + PAGE - 4;
    let before = rig.state.clone();
    // add [rdi], rax; mov rax, [rdi]
    for code in [[0x48, 0x01, 0x07], [0x48, 0x8b, 0x07]] {
        let fault = Fault { address: TRAPPED + PAGE };
        assert_eq!(rig.run(&code), Err(Failure::Fault(fault)));
    }
    assert_eq!((rig.device.seen.len(), rig.state), (0, before));
}

#[test]
fn a_long_string_lets_signals_in_between_its_iterations() {
    let mut rig = Rig::new();
    (rig.state.general[6], rig.state.general[7]) = (PLAIN, TRAPPED);
    rig.state.general[1] = u64::from(BATCH) + 5;
    // rep movsb
    assert_eq!(rig.run(&[0xf3, 0xa4]), Ok(Done::Partly));
    assert_eq!((rig.state.general[1], rig.state.ip), (5, 0x40_0000));
    assert_eq!(rig.state.general[7], TRAPPED + u64::from(BATCH));
    assert_eq!(rig.run(&[0xf3, 0xa4]), Ok(Done::Whole));
    assert_eq!((rig.state.general[1], rig.state.ip), (0, 0x40_0002));
    let end = BATCH as usize + 5;
    assert_eq!(rig.device.bytes[..end], rig.plain.0[..end]);
    assert_eq!(rig.device.seen.len(), end);
}

#[test]
fn a_string_that_runs_into_a_fault_keeps_what_it_has_done() {
    let mut rig = Rig::new();
    (rig.state.general[6], rig.state.general[7]) = (TRAPPED + PAGE - 3, PLAIN);
    rig.state.general[1] = 10;
    assert_eq!(rig.run(&[0xf3, 0xa4]), Ok(Done::Partly));
    assert_eq!((rig.state.general[1], rig.state.general[6]), (7, TRAPPED + PAGE));
    let fault = Fault { address: TRAPPED + PAGE };
    assert_eq!(rig.run(&[0xf3, 0xa4]), Err(Failure::Fault(fault)));
    assert_eq!(rig.state.general[1], 7);
}

#[test]
fn moves_of_the_largest_vectors_are_one_access_and_clear_what_lies_above() {
    let mut rig = Rig::new();
    rig.state.general[7] = TRAPPED + 64;
    // vmovdqu64 ymm16, [rdi]
    assert_eq!(rig.run(&[0x62, 0xe1, 0xfe, 0x28, 0x6f, 0x07]), Ok(Done::Whole));
    assert_eq!(rig.state.vectors[16][..32], rig.device.bytes[64..96]);
    assert_eq!((rig.state.vectors[16][32..].to_vec(), rig.state.written), (vec![0; 32], 1 << 16));
    // vmovdqu64 [rdi], zmm1
    rig.state.vectors[1] = [7; VECTOR];
    assert_eq!(rig.run(&[0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x0f]), Ok(Done::Whole));
    assert_eq!(rig.device.bytes[64..128], [7; 64]);
    assert_eq!(rig.device.seen, [('l', TRAPPED + 64, 32), ('s', TRAPPED + 64, 64)]);
}

#[test]
fn what_is_not_done_is_known_before_anything_is_touched() {
    let mut rig = Rig::new();
    rig.state.general[7] = TRAPPED;
    let before = rig.state.clone();
    let codes: [&[u8]; 7] = [
        // vmovdqu64 ymm16 {k1}, [rdi]; paddb xmm0, [rdi]; fld dword [rdi]; movq mm0, [rdi]; mov
        // [rdi], ds; a push of it that no 64-bit code has; half an instruction
        &[0x62, 0xe1, 0xfe, 0x29, 0x6f, 0x07],
        &[0x66, 0x0f, 0xfc, 0x07],
        &[0xd9, 0x07],
        &[0x0f, 0x6f, 0x07],
        &[0x8c, 0x1f],
        &[0x06],
        &[0x48, 0x8b],
    ];
    for code in codes {
        assert_eq!(rig.run(code), Err(Failure::Unknown), "{code:02x?}");
    }
    assert_eq!((rig.device.seen.len(), rig.state), (0, before));
}

#[test]
fn only_moves_of_vectors_ask_for_them() {
    let uses = |code: &[u8]| Instruction::decode(code, 0, Mode::Bits64).unwrap().uses_vectors();
    assert!(uses(&[0xf3, 0x0f, 0x6f, 0x07]), "movdqu xmm0, [rdi]");
    assert!(uses(&[0x66, 0x0f, 0x7e, 0x07]), "movd [rdi], xmm0");
    assert!(!uses(&[0xa5]) && !uses(&[0x89, 0x07]), "movsd, mov");
}
