"""Devices that are declared, not measured: what their makers and others publish about them, for the roofline model.

Every figure has its source; where none is published it says `estimate` and how. Peaks are those of all cores together,
which no network reaches, so the model ranks plans and compares formats; it predicts no stopwatch. Throughputs of Arm
cores follow their software optimisation guides: 128-bit multiply-adds (FMLA, four 32-bit lanes; SDOT, sixteen products
of 8 bits) per cycle and core. The choice of devices follows AdaDeep's kinds (Liu et al., 2020): phones, a wearable,
boards; with microcontrollers, a server and graphics cards besides.
"""

from dataclasses import dataclass

Figure = tuple[float, str]
"""A number and where it comes from."""

FMLA_64 = (
    "wlog.flatlib.jp/2015/10/30/n1787, measured on Cortex-A72: 4 fp32 multiply-adds a cycle and core, in two 64-bit "
    "pipes; Cortex-A53 and A73 are taken to do as many"
)
FMLA_A7 = "wlog.flatlib.jp/2014/02/14/n1680, measured: 1 fp32 multiply-add a cycle and core, with vectors or without"
NO_DOT = (
    "estimate: twice fp32, as widening multiplies take two 8-bit lanes for a 32-bit one; no dot product instruction"
)
SDOT_A76 = "Arm Cortex-A76 guide: two 128-bit SDOT a cycle and core"
LPDDR_OLD = "Horowitz, ISSCC 2014: 1.3 nJ for 64 bits, the lower end for mobile DRAM"
LPDDR_NEW = "estimate: half of what Horowitz (ISSCC 2014) gives for older mobile DRAM, at half the swing"
SRAM = "Horowitz, ISSCC 2014: 100 pJ for 64 bits from a 1 MB SRAM; flash reads are taken to cost the same"
RUNTIME = "estimate: some thousand cycles of the runtime for each operation, at this clock and issue width"
KERNEL = "estimate: kernels queue up in about half of the 20 us that NVIDIA's Nsight Systems guide shows for one alone"
PHONE = "estimate: what a phone's case carries off for long"


@dataclass(frozen=True)
class DeclaredDevice:
    """What is published about a device. Every figure with its source.

    Attributes:
        kind: phone, wearable, board, microcontroller, server or gpu.
        title: what it is.
        float_gmacs, integer_gmacs: peak of fp32 and of int8, 10^9 multiply-adds a second.
        gigabytes: memory bandwidth, 10^9 bytes a second.
        launch_us: what each operation costs alongside its work, microseconds.
        memory_mb: where weights and activations must fit, 10^6 bytes.
        watts: drawn at full load; divided by the peak, it gives the energy of a multiply-add (an upper bound).
        byte_pj: energy of a byte from memory, picojoules.
        dot_product: whether it sums products of 8 bits in 32 bits (SDOT), and takes weights of 8 bits.
    """

    kind: str
    title: str
    float_gmacs: Figure
    integer_gmacs: Figure
    gigabytes: Figure
    launch_us: Figure
    memory_mb: Figure
    watts: Figure
    byte_pj: Figure
    dot_product: bool = False


DECLARED: dict[str, DeclaredDevice] = {
    "xiaomi-redmi-3s": DeclaredDevice(
        "phone",
        "Snapdragon 430: 4 Cortex-A53 at 1.4 and 4 at 1.1 GHz",
        (40.0, FMLA_64),
        (80.0, NO_DOT),
        (6.4, "notebookinfo.de, Snapdragon 430: LPDDR3 at 800 MHz; taken to be 32 bits wide"),
        (20.0, RUNTIME),
        (2000, "Xiaomi, Redmi 3S specifications: 2 GB"),
        (3.0, PHONE),
        (162.5, LPDDR_OLD),
    ),
    "huawei-p9": DeclaredDevice(
        "phone",
        "Kirin 955: 4 Cortex-A72 at 2.5 and 4 Cortex-A53 at 1.8 GHz",
        (68.8, FMLA_64),
        (137.6, NO_DOT),
        (25.6, "notebookcheck.net, Kirin 955: 2 x 32 bits of LPDDR4-3200 at most"),
        (6.0, RUNTIME),
        (3000, "Huawei, P9 specifications: 3 GB"),
        (3.0, PHONE),
        (81.0, LPDDR_NEW),
    ),
    "xiaomi-mi-6": DeclaredDevice(
        "phone",
        "Snapdragon 835: 4 Kryo 280 (Cortex-A73) at 2.45 and 4 (Cortex-A53) at 1.9 GHz",
        (69.6, FMLA_64),
        (139.2, NO_DOT),
        (29.8, "notebookcheck.com, Snapdragon 835: four channels of LPDDR4X at 1866 MHz; taken to be 16 bits each"),
        (6.0, RUNTIME),
        (6000, "Xiaomi, Mi 6 specifications: 6 GB"),
        (3.5, PHONE),
        (81.0, LPDDR_NEW),
    ),
    "google-pixel-6": DeclaredDevice(
        "phone",
        "Google Tensor: 2 Cortex-X1 at 2.8, 2 Cortex-A76 at 2.25 and 4 Cortex-A55 at 1.8 GHz",
        (154.4, "Arm's guides: FMLA a cycle: four on Cortex-X1, two on Cortex-A76, one on Cortex-A55"),
        (617.6, "Arm's guides: SDOT a cycle: four on Cortex-X1, two on Cortex-A76, one on Cortex-A55"),
        (51.2, "estimate: LPDDR5 at 3200 MHz, 64 bits wide"),
        (3.0, RUNTIME),
        (8000, "Google, Pixel 6 specifications: 8 GB"),
        (4.5, "notebookcheck.net, Google Tensor, measured: 5.4 W in Geekbench less 0.9 W idle"),
        (81.0, LPDDR_NEW),
        dot_product=True,
    ),
    "huawei-watch-2": DeclaredDevice(
        "wearable",
        "Snapdragon Wear 2100: 4 Cortex-A7 at 1.1 GHz",
        (4.4, FMLA_A7),
        (8.8, NO_DOT),
        (3.2, "AnandTech 10031, Snapdragon Wear 2100: LPDDR3 at 400 MHz; taken to be 32 bits wide"),
        (40.0, RUNTIME),
        (768, "Huawei, Watch 2 specifications: 768 MB"),
        (0.8, "estimate: a day's battery of 420 mAh lasts two hours at full load"),
        (162.5, LPDDR_OLD),
    ),
    "raspberry-pi-zero-2w": DeclaredDevice(
        "board",
        "Raspberry Pi Zero 2 W: 4 Cortex-A53 at 1 GHz",
        (16.0, FMLA_64),
        (32.0, NO_DOT),
        (3.6, "etechnophiles.com, Zero 2 W: LPDDR2 at 450 MHz; taken to be 32 bits wide"),
        (25.0, RUNTIME),
        (512, "Raspberry Pi, Zero 2 W product brief: 512 MB"),
        (3.0, "estimate: 600 mA at 5 V with all cores busy"),
        (162.5, LPDDR_OLD),
    ),
    "raspberry-pi-4": DeclaredDevice(
        "board",
        "Raspberry Pi 4 B: 4 Cortex-A72 at 1.8 GHz",
        (28.8, FMLA_64),
        (57.6, NO_DOT),
        (5.6, "sci-pi.org.uk/bench/stream.html: STREAM Scale, measured, 5562 MB/s (its peak is 12.8)"),
        (8.0, RUNTIME),
        (4000, "Raspberry Pi, 4 B product brief: 4 GB (1, 2 and 8 exist)"),
        (8.0, "Raspberry Pi, 'Introducing: Raspberry Pi 5': about 8 W for the 4 at most"),
        (81.0, LPDDR_NEW),
    ),
    "raspberry-pi-5": DeclaredDevice(
        "board",
        "Raspberry Pi 5: 4 Cortex-A76 at 2.4 GHz",
        (76.8, "Arm Cortex-A76 guide: two 128-bit FMLA a cycle and core"),
        (307.2, SDOT_A76),
        (17.1, "circuitdigest.com, Raspberry Pi 5: 32 bits of LPDDR4X at 4267 MT/s"),
        (4.0, RUNTIME),
        (8000, "Raspberry Pi, 5 product brief: 8 GB (4 and 16 exist)"),
        (12.0, "Raspberry Pi, 'Introducing: Raspberry Pi 5': about 12 W at most"),
        (81.0, LPDDR_NEW),
        dot_product=True,
    ),
    "firefly-rk3399": DeclaredDevice(
        "board",
        "Rockchip RK3399: 2 Cortex-A72 at 1.8 and 4 Cortex-A53 at 1.4 GHz",
        (36.8, FMLA_64),
        (73.6, NO_DOT),
        (12.8, "Rockchip, RK3399 data sheet: two channels of 32 bits; DDR3-1600"),
        (8.0, RUNTIME),
        (4000, "T-Chip, Firefly-RK3399 specifications: 4 GB"),
        (8.0, "estimate: as a Raspberry Pi 4, whose cores are the same"),
        (162.5, LPDDR_OLD),
    ),
    "jetson-nano": DeclaredDevice(
        "board",
        "NVIDIA Jetson Nano: 128 Maxwell cores at 0.92 GHz",
        (118.0, "NVIDIA, Jetson Nano data sheet: 472 GFLOPS in fp16, half of it in fp32, two operations each"),
        (118.0, "CUDA programming guide: compute capability 5.3 has no 8-bit dot product, so as fp32"),
        (25.6, "NVIDIA, Jetson Nano data sheet"),
        (10.0, KERNEL),
        (4000, "NVIDIA, Jetson Nano data sheet: 4 GB"),
        (10.0, "NVIDIA, Jetson Nano data sheet: 10 W"),
        (81.0, LPDDR_NEW),
    ),
    "jetson-orin-nano": DeclaredDevice(
        "board",
        "NVIDIA Jetson Orin Nano 8 GB: 1024 Ampere cores at 0.625 GHz",
        (640.0, "NVIDIA, Jetson Orin Nano data sheet: 1024 cores at 625 MHz"),
        (10000.0, "NVIDIA, Jetson Orin Nano data sheet: 40 TOPS sparse, so 20 dense, two operations each"),
        (68.0, "NVIDIA, Jetson Orin Nano data sheet"),
        (10.0, KERNEL),
        (8000, "NVIDIA, Jetson Orin Nano data sheet: 8 GB"),
        (15.0, "NVIDIA, Jetson Orin Nano data sheet: 15 W"),
        (81.0, LPDDR_NEW),
    ),
    "stm32f746": DeclaredDevice(
        "microcontroller",
        "STM32F746: Cortex-M7 at 216 MHz",
        (0.108, "estimate: two cycles for each multiply-add, as its operands must be loaded"),
        (0.1245, "Lai et al., CMSIS-NN (arXiv:1801.06601): 249 million operations a second on this chip, measured"),
        (0.86, "estimate: one 32-bit word a cycle from flash behind its accelerator"),
        (10.0, RUNTIME),
        (1.37, "ST, STM32F746 data sheet: 1 MB flash and 320 KB SRAM"),
        (0.34, "estimate: about 100 mA at 3.3 V when running from flash at 216 MHz"),
        (12.5, SRAM),
    ),
    "arduino-nano-33-ble": DeclaredDevice(
        "microcontroller",
        "nRF52840: Cortex-M4F at 64 MHz",
        (0.016, "estimate: four cycles for each multiply-add"),
        (0.02, "estimate: half of what CMSIS-NN (arXiv:1801.06601) reaches a cycle on a Cortex-M7, which issues two"),
        (0.128, "estimate: one 32-bit word every other cycle from flash"),
        (30.0, RUNTIME),
        (1.31, "Nordic, nRF52840 product specification: 1 MB flash and 256 KB RAM"),
        (0.01, "estimate: about 3.3 mA at 3 V, processor running from flash, radio off"),
        (12.5, SRAM),
    ),
    "xeon-platinum-8380": DeclaredDevice(
        "server",
        "Intel Xeon Platinum 8380: 40 cores at 2.3 GHz",
        (2944.0, "Intel: 2.3 GHz, two AVX-512 units; 2 x 16 fp32 multiply-adds a cycle and core"),
        (11776.0, "Intel: AVX-512 VNNI; 2 x 64 multiply-adds of 8 bits a cycle and core"),
        (204.8, "Intel: eight channels of DDR4-3200"),
        (2.0, RUNTIME),
        (64000, "estimate: eight modules of 8 GB"),
        (270.0, "Intel: thermal design power"),
        (162.5, "Jouppi et al., ISCA 2021, table 2: 1.3 nJ for 64 bits of DDR4"),
    ),
    "nvidia-t4": DeclaredDevice(
        "gpu",
        "NVIDIA T4",
        (4050.0, "NVIDIA, T4 data sheet: 8.1 TFLOPS in fp32"),
        (65000.0, "NVIDIA, T4 data sheet: 130 TOPS in int8"),
        (320.0, "NVIDIA, T4 data sheet"),
        (10.0, KERNEL),
        (16000, "NVIDIA, T4 data sheet: 16 GB"),
        (70.0, "NVIDIA, T4 data sheet"),
        (52.0, "Jouppi et al., ISCA 2021, table 2: 350 to 480 pJ for 64 bits of GDDR6"),
    ),
    "nvidia-a100": DeclaredDevice(
        "gpu",
        "NVIDIA A100 40 GB",
        (9750.0, "NVIDIA, A100 data sheet: 19.5 TFLOPS in fp32"),
        (312000.0, "NVIDIA, A100 data sheet: 624 TOPS in int8"),
        (1555.0, "NVIDIA, A100 data sheet"),
        (10.0, KERNEL),
        (40000, "NVIDIA, A100 data sheet: 40 GB"),
        (400.0, "NVIDIA, A100 data sheet (SXM)"),
        (44.0, "Jouppi et al., ISCA 2021, table 2: 250 to 450 pJ for 64 bits of HBM2"),
    ),
}
