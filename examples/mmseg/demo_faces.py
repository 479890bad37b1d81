_base_ = "small_unet.py"

custom_imports = dict(imports=["dsgan_datasets.adapters.mmseg"])
faces = dict(type="DSGANSegDataset", checkpoint="demo-faces")
train_sampler, val_sampler = dict(type="InfiniteSampler"), dict(type="DefaultSampler", shuffle=False)
train_dataloader = dict(batch_size=8, num_workers=0, sampler=train_sampler, dataset=dict(length=100_000, **faces))
val_dataloader = dict(batch_size=1, num_workers=0, sampler=val_sampler, dataset=dict(length=50, seed=1, **faces))
val_evaluator = dict(type="IoUMetric")
model = dict(decode_head=dict(num_classes=12))
