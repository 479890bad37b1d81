"""A small U-Net with a schedule for two CPU cores; any other MMSegmentation config serves as well."""

default_scope = "mmseg"
norm_cfg = dict(type="BN")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size_divisor=4,
    ),
    backbone=dict(
        type="UNet",
        base_channels=16,
        num_stages=3,
        strides=(1, 1, 1),
        enc_num_convs=(2, 2, 2),
        dec_num_convs=(2, 2),
        downsamples=(True, True),
        enc_dilations=(1, 1, 1),
        dec_dilations=(1, 1),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=16,
        in_index=2,
        channels=16,
        num_convs=1,
        num_classes=2,
        norm_cfg=norm_cfg,
    ),
    test_cfg=dict(mode="whole"),
)
optim_wrapper = dict(optimizer=dict(type="Adam", lr=5e-3))
train_cfg = dict(type="IterBasedTrainLoop", max_iters=200, val_interval=100)
val_cfg = dict()
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    checkpoint=dict(type="CheckpointHook", interval=100, by_epoch=False),
    visualization=dict(type="SegVisualizationHook", draw=True, interval=10),
)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)  # a resumed training then finds the same sampler
