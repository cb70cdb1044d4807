//! A table used without knowing its format, as whoever has several kinds of IOMMU uses it.

use std::sync::Arc;

use ioasis_iommupt::fmt::{AmdV1, Sv48, VtdSs};
use ioasis_iommupt::{
    Config, Counted, Dirty, Format, Iova, IovaRange, Pa, PageTable, Prot, Quiesce, Run, Section,
    TableWriter,
};

const RW: Prot = Prot::READ.union(Prot::WRITE);

fn table<F: Format>(quiesce: &Arc<dyn Quiesce>) -> Box<dyn TableWriter> {
    let (writer, _) = PageTable::<F>::new(Config::new(Arc::clone(quiesce))).expect("a root");
    Box::new(writer)
}

fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::new(Iova(start), length).expect("a range")
}

#[test]
fn a_table_of_any_format_is_used_the_same_way() {
    let quiesce: Arc<dyn Quiesce> = Arc::new(Counted::default());
    for mut table in [table::<VtdSs>(&quiesce), table::<AmdV1>(&quiesce), table::<Sv48>(&quiesce)] {
        let reader = table.reader();
        let what = format!("{table:?} {reader:?}");
        assert!(what.contains("format"), "{what}");
        assert_eq!(table.aperture().start(), Iova(0));
        assert_ne!(table.page_sizes() & 0x1000, 0, "{what}");

        table.map(Iova(0x20_0000), &[Run { pa: Pa(0x4020_0000), length: 0x20_0000 }], RW).unwrap();
        let section = Section::enter(&*quiesce);
        assert_eq!(reader.iova_to_phys(Iova(0x20_1234)), Some(Pa(0x4020_1234)), "{what}");
        let run = reader.translate(Iova(0x20_1000), 0x3000, Prot::READ).unwrap();
        assert_eq!((run.pa, run.length), (Pa(0x4020_1000), 0x3000), "{what}");
        drop(section);

        table.cut(Iova(0x20_1000)).unwrap();
        let mut dirty = Vec::new();
        table.read_dirty(range(0x20_0000, 0x20_0000), Dirty::Clear, &mut |_| {});
        table.set_dirty(range(0x20_1000, 0x1000));
        table.read_dirty(range(0x20_0000, 0x20_0000), Dirty::Clear, &mut |range| dirty.push(range));
        assert!(!dirty.is_empty(), "{what}");
        table.protect(range(0x20_1000, 0x1000), Prot::READ).unwrap();
        assert!(reader.translate(Iova(0x20_1000), 1, Prot::WRITE).is_err(), "{what}");

        let mut old = 0;
        table.unmap(range(0x20_0000, 0x1000), &mut |_, run| old += run.length).unwrap();
        assert_eq!(old, 0x1000, "{what}");
        table.clear(range(0x20_0000, 0x20_0000));
        assert_eq!(reader.iova_to_phys(Iova(0x20_2000)), None, "{what}");
        table.cut_aperture(Iova(0xffff_ffff)).unwrap();
        assert_eq!(table.aperture().last(), Iova(0xffff_ffff), "{what}");
    }
}
